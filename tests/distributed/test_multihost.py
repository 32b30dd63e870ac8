"""Several processes that train as one: real ones, over the network of this machine, and what each does on its own."""

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures.cli_runs import environment, free_port
from fixtures.tiny_run import EXPERIMENT, lines

from jaxlm.checkpoint.manager import SaveError
from jaxlm.cli.main import main
from jaxlm.data.batching.batches import HostShard, RunningTextBatches
from jaxlm.data.batching.bucketing import Packing
from jaxlm.data.batching.lm_windows import Windows
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Ragged
from jaxlm.data.sources.parallel import Tsv
from jaxlm.data.tokenizers.simple import Words
from jaxlm.distributed import launcher, multihost
from jaxlm.errors import UserError
from jaxlm.training.setup import OpenRun, _check_same_data
from jaxlm.workdir import Workdir

SPACED = Words(8).fit(["a b A B"])

TINY = str(Path(__file__).parents[1] / "fixtures" / "tiny_experiment.py") + ":tiny"


def texts(count: int) -> Ragged:
    rng = np.random.default_rng(0)
    return Ragged.from_rows([rng.integers(4, 23, rng.integers(2, 9)) for _ in range(count)])


@pytest.mark.parametrize(
    "batching", [replace(EXPERIMENT.batching, tokens=192), Packing(length=16, tokens=256), Windows(5, 8)], ids=str
)
def test_hosts_make_their_rows_and_no_others(batching):
    """Their parts, one after the other, are the batch."""
    columns = {"target": texts(200)} if isinstance(batching, Windows) else {"source": texts(200), "target": texts(200)}
    batches = batching.batches(columns, 1)
    for k in (0, 3):
        parts = [HostShard(batches, index, 4)[k] for index in range(4)]
        whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        jax.tree.map(np.testing.assert_array_equal, whole, batches[k])
        assert len({len(leaf) for leaf in jax.tree.leaves(parts)}) == 1
        sliced = RunningTextBatches.host_part(batches, k, 2, 4)  # the default of batches that make no parts
        jax.tree.map(np.testing.assert_array_equal, sliced, parts[2])


def test_who_started_several_processes(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    assert launcher.detect_launcher() == ""
    for variable, value, starter in (
        ("SLURM_STEP_NUM_TASKS", "1", ""),
        ("SLURM_STEP_NUM_TASKS", "4", "Slurm"),
        ("OMPI_COMM_WORLD_SIZE", "2", "Open MPI"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(variable, value)
            assert launcher.detect_launcher() == starter


@pytest.mark.parametrize(
    "variables, starter",
    [
        ({"SLURM_STEP_ID": "4294967290"}, ""),
        ({"SLURM_JOB_NAME": "interactive"}, ""),
        ({"SLURM_PTY_PORT": "40000"}, ""),
        ({"SLURM_PTY_PORT": "40000", "SLURM_TASK_PID": "7"}, "Slurm"),  # a step started from such a shell: no terminal
        ({"SLURM_JOB_NAME": "train", "SLURM_TASK_PID": "7"}, "Slurm"),
    ],
)
def test_a_shell_of_slurm_is_one_process(monkeypatch, variables, starter):
    for name in ("SLURM_STEP_ID", "SLURM_JOB_NAME", "SLURM_PTY_PORT", "SLURM_TASK_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", None)
    for name, value in {"SLURM_STEP_NUM_TASKS": "4", **variables}.items():
        monkeypatch.setenv(name, value)
    assert launcher.detect_launcher() == starter


@pytest.mark.parametrize(
    "words, message",
    [
        (["--coordinator-address", "a:1"], "--coordinator-address a:1 --num-processes None --process-id None"),
        (["--coordinator-address", "a:1", "--num-processes", "2", "--process-id", "2"], "--process-id I (0 to N - 1)"),
        (["--mesh", "rows=2"], "found 'rows=2', expected AXIS=SIZE"),
    ],
)
def test_half_a_command_line_is_refused(words, message, capsys, tmp_path):
    assert main(["train", TINY, "--workdir", str(tmp_path / "run"), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_mesh_that_is_too_large_is_refused(capsys, tmp_path):
    assert main(["train", TINY, "--workdir", str(tmp_path / "run"), "--mesh", "tensor=16"]) == 1
    assert "--mesh tensor=16 asks for 16 devices, and there are 8" in capsys.readouterr().err


@pytest.mark.parametrize("cause, code", [(RuntimeError("UNAVAILABLE: peer"), 75), (OSError("no space"), 1)])
def test_a_save_that_fails_without_the_other_host_is_a_lost_host(monkeypatch, cause, code):
    """The others are lost, not the disk: the process asks to be started again. A full disk is an error."""
    codes: list[int] = []
    monkeypatch.setattr(multihost, "num_hosts", lambda: 2)
    monkeypatch.setattr(multihost, "abort", lambda reason, code: codes.append(code))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the heartbeats end the process meanwhile
    with multihost.fail_together():
        try:
            raise cause
        except Exception as error:
            raise SaveError("step 100 was not saved") from error
    assert codes[0] == code  # the real one does not return


def test_the_watchdog_barks_when_nothing_moves(monkeypatch):
    barked = threading.Event()
    monkeypatch.setattr(multihost, "abort", lambda *_: barked.set())
    with multihost.watchdog(0.0) as never, multihost.watchdog(0.2) as reset:
        never()
        for _ in range(8):
            reset()
            time.sleep(0.05)
        assert not barked.is_set()
        assert barked.wait(5)


def test_the_watchdog_is_on_with_several_processes(monkeypatch):
    assert multihost.step_timeout(None) == 0 and multihost.step_timeout(60.0) == 60
    monkeypatch.setattr(multihost, "num_hosts", lambda: 2)
    assert multihost.step_timeout(None) == 1800 and multihost.step_timeout(0.0) == 0


def test_a_metadata_server_that_does_not_answer_is_an_error_of_one_line(monkeypatch):
    def initialize(initialization_timeout=300, **_):
        raise ConnectionError("HTTPConnectionPool(host='metadata.google.internal')\nmore")

    monkeypatch.setattr(multihost, "detect_launcher", lambda: launcher.TPU_POD)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(multihost, "global_state", type("State", (), {"client": None, "service": None})())
    with pytest.raises(UserError, match="within 300 s: HTTPConnectionPool.*: check that every process"):
        multihost.connect()


def command(folder: Path, *words: object) -> list[str]:
    return [sys.executable, "-m", "jaxlm", "train", TINY, "--workdir", str(folder), *map(str, words)]


def started(folder: Path, count: int, *words: object, of_last: tuple = ()) -> list[subprocess.Popen]:
    """`jaxlm train` in so many processes; `of_last` are more words for the last one."""
    told = "--coordinator-address", f"127.0.0.1:{free_port()}", "--num-processes", count
    return [
        subprocess.Popen(
            command(folder, *told, "--process-id", index, *words, *(of_last if index == count - 1 else ())),
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(count)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen], code: int = 0) -> list[tuple[str, str]]:
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), said
    return said


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process on one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run(command(folder), env=environment(), check=True, capture_output=True)
    return folder


def check_same(found: Path, expected: Path) -> None:
    """Every figure that is not of the clock, and the scores and answers of the test split."""
    for one, other in zip(lines(found), lines(expected), strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            np.testing.assert_allclose(one[name], value, rtol=1e-5, err_msg=name)
    judged = [json.loads((folder / "test.json").read_text()) for folder in (found, expected)]
    assert judged[0]["checkpoints"] == judged[1]["checkpoints"]
    assert judged[0]["test"]["bleu"] == judged[1]["test"]["bleu"]
    assert judged[0]["test"]["chrf"] == judged[1]["test"]["chrf"]


@pytest.mark.slow
@pytest.mark.parametrize("count, mesh", [(2, "data=2"), (2, "fsdp=2"), (4, "data=2,fsdp=2"), (4, "data=2,tensor=2")])
def test_processes_train_as_one(count, mesh, alone, tmp_path):
    """The same figures, and one log; what is read afterwards is what one process reads."""
    said = ended(started(tmp_path / "run", count, "--mesh", mesh))
    check_same(tmp_path / "run", alone)
    assert f"{count} hosts of 1 x cpu" in said[0][1]
    assert json.loads(said[0][0].splitlines()[-1])["step"] == 4
    assert not any("{" in out or "loss" in err for out, err in said[1:]), said


@pytest.mark.slow
def test_a_checkpoint_of_four_is_read_by_one_and_by_two(alone, tmp_path):
    ended(started(tmp_path / "four", 4, "--mesh", "fsdp=4", "--steps", 2))
    shutil.copytree(tmp_path / "four", tmp_path / "two")
    ended(started(tmp_path / "two", 2, "--mesh", "tensor=2", "--steps", 4))
    subprocess.run(command(tmp_path / "four", "--steps", 4), env=environment(), check=True, capture_output=True)
    for folder in ("four", "two"):
        assert lines(tmp_path / folder)[-1]["step"] == 4
        for one, other in zip(lines(tmp_path / folder)[-2:], lines(alone)[-2:], strict=True):
            for name, value in other.items():
                np.testing.assert_allclose(one[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_host_that_differs_is_named(tmp_path):
    said = ended(started(tmp_path / "run", 2, of_last=("--seed", "1")), 1)
    assert all("host 1 of 2" in err and "has experiment" in err for _, err in said)


def mishap(kind: str, victim: int = 1) -> tuple[list[int], list[list[dict]], list[str]]:
    """Exit codes, what was said and stderr of two processes of `host_program`."""
    program = [sys.executable, str(Path(__file__).parents[1] / "fixtures" / "host_program.py")]
    pipes: dict = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    port = free_port()
    words = str(port), kind, str(victim)
    processes = [subprocess.Popen([*program, str(index), *words], **pipes) for index in range(2)]
    if kind == "SIGSTOP":  # the other one must end while this one still exists
        processes[1 - victim].wait(timeout=240)
        processes[victim].kill()
    out, err = zip(*(process.communicate(timeout=300) for process in processes), strict=True)
    said = [[json.loads(line) for line in text.splitlines() if line.startswith("{")] for text in out]
    return [process.returncode for process in processes], said, list(err)


@pytest.mark.slow
@pytest.mark.parametrize("kind, reason", [("SIGTERM", "interrupted"), ("SIGINT", "interrupted"), ("clock", "time")])
def test_what_stops_one_stops_all_at_one_step(kind, reason):
    """And before: they share rows and work, tell each other long texts, and hear of a fault on one of them."""
    codes, said, _ = mishap(kind)
    assert codes == [0, 0]
    for index, (met, dealt, told, agreed, stopped) in enumerate(said):
        assert met["share"] == [index, 2] and met["met"].startswith("2 hosts of 1 x cpu")
        assert met["timeout"] == multihost.STEP_TIMEOUT
        assert dealt["dealt"] == [["a", 0], ["b", 1], ["c", 0]]
        assert told == {"long": [3_000_000, 3_000_001], "first": 0}
        assert agreed["agreed"].startswith("host 1 of 2 (") and agreed["agreed"].endswith("): no data here")
        assert stopped == {"stopped": reason, "step": said[0][-1]["step"]}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("kind, code", [("SIGKILL", -9), ("SIGSTOP", -9), ("full disk", 1)])
def test_a_host_that_is_lost_ends_all(kind, code, victim):
    """The other one names it within a minute, and ends with the code that asks for a restart."""
    codes, _, err = mishap(kind, victim)
    assert codes[victim] == code and codes[1 - victim] == multihost.RESTART_EXIT_CODE, err
    last = err[1 - victim].splitlines()[-1]
    assert last.startswith(f"jaxlm: host {1 - victim} of 2 (") and f": host {victim} of 2 (" in last
    assert ("the disk is full" if code == 1 else "is not reached any more") in last
    assert "start every process again" in last
    assert not any(words in err[1 - victim] for words in ("Check failure stack trace", "terminate called", "bad_cast"))
    assert code < 0 or f"jaxlm: host {victim} of 2" in err[victim] and "the disk is full" in err[victim]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_hangs_ends_all(victim):
    """Its heartbeats go on. The watchdog of each host ends it, or hears of the other's, and says where it was."""
    codes, _, err = mishap("hang", victim)
    assert codes == [multihost.RESTART_EXIT_CODE] * 2, err
    last = [text.splitlines()[-1] for text in err]
    assert all("no step for 5 s" in line and "start every process again" in line for line in last), last
    assert any("host_program.py" in text for text in err), err


def test_hosts_with_other_data_are_named(monkeypatch, tmp_path):
    """One other word in a file of one host, of any split."""
    files = [tmp_path / name for name in ("train.tsv", "valid.tsv", "test.tsv")]
    splits = [Tsv(str(file), 0, 1) for file in files]
    task = replace(EXPERIMENT.task, train=splits[0], valid=splits[1], test=splits[2])
    run = OpenRun(replace(EXPERIMENT, task=task), Workdir(tmp_path / "run"), SPACED, print)
    exchanged: list = []
    monkeypatch.setattr(multihost, "all_gather_json", lambda value: exchanged.append(value[1]) or [value])
    for other in (None, *files):
        for file in files:
            file.write_text("a b\tA B\nb a\tB A\n" if file != other else "a b\tA B\nb b\tB A\n")
        _check_same_data(run, task.encode_train(SPACED, None, ReadStats()))
    assert len({json.dumps(facts) for facts in exchanged}) == 4
    hosts = [("host 0 of 2 (a)", exchanged[0]), ("host 1 of 2 (b)", exchanged[2])]
    monkeypatch.setattr(multihost, "all_gather_json", lambda _: hosts)
    with pytest.raises(multihost.AgreedError, match="host 1 of 2 .b. has validation data .*, host 0 of 2 .a. has"):
        multihost.check_same({}, "give all of them the same files")
