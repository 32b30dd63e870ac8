"""Real processes that meet: one that never comes, and one with another file, are named by the others."""

import subprocess
import sys

import pytest
from fixtures.cli_runs import EXPERIMENT, environment, free_port

NEVER = """
import functools, sys, jax
jax.distributed.initialize = functools.partial(jax.distributed.initialize, initialization_timeout=5)
from jaxlm.distributed.multihost import CoordinatorConfig, connect
from jaxlm.errors import UserError
try:
    connect(CoordinatorConfig(sys.argv[1], 2, int(sys.argv[2])))
except UserError as error:
    raise SystemExit(f"jaxlm: {error}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_host_that_never_comes_is_a_message(number):
    """After words while it is waited for; no library aborts the process, which a launch script would start again."""
    command = [sys.executable, "-c", NEVER, f"127.0.0.1:{free_port()}", str(number)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1, ended.stderr
    assert f"process {number} of 2 on" in ended.stderr and "waits for the others" in ended.stderr
    missing = f"within 5 s, since host {1 - number} did not come: check that"
    assert f"did not meet the others (--coordinator-address) {missing}" in ended.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_host_with_another_file_is_named_by_all(tmp_path):
    """The digests of one word more go over the network; no host makes a step."""
    words = "--coordinator-address", f"127.0.0.1:{free_port()}", "--num-processes", 2, "--process-id"
    processes = []
    for index, text in enumerate(("a b\n", "a b c\n")):
        folder = tmp_path / str(index)
        folder.mkdir()
        for name in ("nowhere.en", "nowhere.es"):
            (folder / name).write_text(text)
        program = [sys.executable, "-m", "jaxlm", "train", f"{EXPERIMENT}:missing", "--workdir", tmp_path / "run"]
        env, pipes = environment() | {"JAXLM_DATA": str(folder)}, {"stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([*map(str, [*program, *words, index])], env=env, **pipes))
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 1, err
        assert "the hosts differ: host 1 of 2" in err and "has test data" in err, err
    assert not (tmp_path / "run" / "checkpoints").exists()
