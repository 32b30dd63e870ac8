"""tpu_setup.sh and its commands on a host, with a fake gcloud that records its calls and answers from files."""

import os
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_FOUND = "ERROR: (gcloud) NOT_FOUND: Resource 'x' was not found"

# Each call is a line of shell words in `calls`. The answers of a command are the lines of the file of its first words:
# `code text`, one a call, the last for good; no file: 0 and nothing. A command sent by ssh is run here, as one host.
GCLOUD = """#!/usr/bin/env bash
cd "$(dirname "$0")/.."
printf '%q ' "$@" >>calls; echo >>calls
answers="$3 $4"
if [[ $4 == scp ]]; then cp "$5" host/jaxlm-new.tar.gz; fi
if [[ -s $answers ]]; then
    line=$(head -n 1 "$answers")
    if (($(wc -l <"$answers") > 1)); then sed -i 1d "$answers"; fi
    code=${line%% *} text=${line#"$code"}
    if ((code)); then echo "${text# }" >&2; else echo "WARNING: an update is available" >&2; echo "${text# }"; fi
    exit "$code"
fi
if [[ $4 == ssh && -e run_on_host ]]; then
    for word in "$@"; do
        if [[ $word == --command=* ]]; then cd host; HOME=$PWD exec bash -c "${word#--command=}"; fi
    done
fi
"""


class Slice:
    """The script with a recording gcloud: `answers(command, *lines)`, `call(*words)`, `calls()`."""

    def __init__(self, folder: Path):
        self.folder, self.host = folder, folder / "host"
        (folder / "bin").mkdir()
        self.host.mkdir()
        gcloud = folder / "bin/gcloud"
        gcloud.write_text(GCLOUD)
        gcloud.chmod(0o755)
        self.env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "JAXLM_RESTART_SECONDS": "0"}
        self.env.pop("JAXLM_RUN", None)

    def answers(self, command: str, *lines: str) -> None:
        (self.folder / command).write_text("".join(f"{line}\n" for line in lines))

    def call(self, *words: str, script: Path = ROOT / "tpu_setup.sh") -> subprocess.CompletedProcess:
        command = ["bash", str(script), *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def calls(self) -> list[list[str]]:
        calls = self.folder / "calls"
        return [shlex.split(line) for line in calls.read_text().splitlines()] if calls.exists() else []


@pytest.fixture
def cloud(tmp_path):
    return Slice(tmp_path)


def one_line(found: subprocess.CompletedProcess, code: int = 1) -> str:
    """The last line of stderr, which is the script's own; the code is checked."""
    assert found.returncode == code, (found.returncode, found.stdout, found.stderr)
    last = found.stderr.splitlines()[-1]
    assert last.startswith("tpu_setup.sh: "), found.stderr
    return last


RUNTIMES = {"v4-8": "tpu-ubuntu2204-base", "v5litepod-16": "v2-alpha-tpuv5-lite", "v5p-8": "v2-alpha-tpuv5"}
RUNTIMES |= {"v6e-8": "v2-alpha-tpuv6e"}


@pytest.mark.parametrize("kind", RUNTIMES)
def test_create_uses_the_image_of_the_generation(cloud, kind):
    cloud.answers("tpu-vm describe", f"1 {NOT_FOUND}")
    options = ["--type", kind, "--zone", "us-east5-a", "--project", "p", "--network", "my net", "--spot"]
    assert cloud.call("create", "mine", *options).returncode == 0
    look, create = cloud.calls()
    where = ["--zone=us-east5-a", "--project=p"]
    assert look == ["compute", "tpus", "tpu-vm", "describe", "mine", "--format=value(state)", *where]
    expected = [f"--version={RUNTIMES[kind]}", f"--accelerator-type={kind}", "--spot", "--network=my net", *where]
    assert create == ["compute", "tpus", "tpu-vm", "create", "mine", *expected]


def test_create_keeps_an_existing_slice(cloud):
    cloud.answers("tpu-vm describe", "0 READY")
    assert "mine exists already" in one_line(cloud.call("create", "mine", "--type", "v4-8"), 0)
    cloud.answers("tpu-vm describe", "0 PREEMPTED")
    assert "mine exists in state PREEMPTED: delete it first" in one_line(cloud.call("create", "mine", "--type", "v4-8"))
    assert [words[3] for words in cloud.calls()] == ["describe"] * 2


def test_a_refused_creation_is_not_repeated(cloud):
    cloud.answers("tpu-vm describe", f"1 {NOT_FOUND}")
    cloud.answers("tpu-vm create", "1 ERROR: no more capacity in the zone")
    assert "without capacity, use './tpu_setup.sh queue'" in one_line(cloud.call("create", "mine", "--type", "v4-8"))
    assert [words[3] for words in cloud.calls()] == ["describe", "create"]


def test_a_state_that_cannot_be_read_is_queried_three_times(cloud):
    cloud.answers("tpu-vm describe", "1 ERROR: backend error")
    last = one_line(cloud.call("create", "mine", "--type", "v4-8", "--pause", "0"))
    assert "3 tries" in last and "backend error" in last
    assert [words[3] for words in cloud.calls()] == ["describe"] * 3
    cloud.answers("tpu-vm describe", "1 ERROR: backend error", "0 READY")
    assert cloud.call("create", "mine", "--type", "v4-8", "--pause", "0").returncode == 0


def test_queue_waits_for_its_turn(cloud):
    cloud.answers(
        "queued-resources describe", f"1 {NOT_FOUND}", "0 WAITING_FOR_RESOURCES", "0 PROVISIONING", "0 ACTIVE"
    )
    options = ["--type", "v5litepod-16", "--spot", "--valid-until", "6h", "--pause", "0"]
    found = cloud.call("queue", "mine", *options)
    assert found.returncode == 0 and found.stderr.count("mine: ") == 3
    create = ["create", "mine", "--node-id=mine", "--runtime-version=v2-alpha-tpuv5-lite"]
    create += ["--accelerator-type=v5litepod-16", "--spot", "--valid-until-duration=6h"]
    assert cloud.calls()[1] == ["compute", "tpus", "queued-resources", *create]
    assert [words[3] for words in cloud.calls()] == ["describe", "create"] + ["describe"] * 3
    cloud.answers("tpu-vm describe", "0 READY")
    assert "mine exists already" in one_line(cloud.call("queue", "mine", *options), 0)


def test_a_preempted_request_is_replaced_only_with_replace(cloud):
    cloud.answers("queued-resources describe", "0 SUSPENDED")
    assert "--replace deletes it" in one_line(cloud.call("queue", "mine", "--type", "v6e-8"))
    assert len(cloud.calls()) == 1
    cloud.answers("queued-resources describe", "0 SUSPENDED", "0 ACTIVE")
    assert cloud.call("queue", "mine", "--type", "v6e-8", "--replace", "--pause", "0").returncode == 0
    assert [words[3] for words in cloud.calls()[1:]] == ["describe", "delete", "create", "describe"]
    assert cloud.calls()[2][4:] == ["mine", "--force", "--quiet"]


def test_a_preempted_slice_is_requested_again(cloud):
    cloud.answers("queued-resources describe", "0 ACTIVE")
    cloud.answers("tpu-vm describe", "0 PREEMPTED")
    cloud.answers("queued-resources delete", "1 being suspended", "0 ")
    assert "its slice PREEMPTED: --replace" in one_line(cloud.call("queue", "mine", "--type", "v6e-8"))
    assert cloud.call("queue", "mine", "--type", "v6e-8", "--replace", "--pause", "0").returncode == 0
    assert [words[3] for words in cloud.calls()[2:]] == ["describe"] * 2 + ["delete"] * 2 + ["create", "describe"]


@pytest.mark.parametrize(
    "ssh, states, code", [("0 0", ["0 READY"], 0), ("0 1", ["0 READY"], 1), ("0 75", ["0 READY"], 75)]
)
def test_wait_ends_as_the_command_did(cloud, ssh, states, code):
    cloud.answers("tpu-vm describe", "1 ERROR: no network", *states)
    cloud.answers("tpu-vm ssh", "0 running", "255 lost", ssh)
    assert f"code {code}" in one_line(cloud.call("wait", "mine", "--pause", "0"), code)


def test_wait_notices_a_lost_slice(cloud):
    cloud.answers("tpu-vm describe", "0 READY", "0 REPAIRING", "0 PREEMPTED")
    cloud.answers("tpu-vm ssh", "0 running")
    assert "PREEMPTED" in one_line(cloud.call("wait", "mine", "--pause", "0"), 75)


def test_a_failed_request_ends_the_command(cloud):
    cloud.answers("queued-resources describe", f"1 {NOT_FOUND}", "0 PROVISIONING", "0 FAILED")
    assert "FAILED" in one_line(cloud.call("queue", "mine", "--type", "v6e-8", "--pause", "0"))


def test_nothing_is_deleted_without_confirmation(cloud):
    assert "--yes" in one_line(cloud.call("delete", "mine")) and not cloud.calls()
    cloud.answers("queued-resources describe", f"1 {NOT_FOUND}")
    cloud.answers("tpu-vm describe", "0 READY")
    assert cloud.call("delete", "mine", "--yes").returncode == 0
    assert cloud.calls()[-1][2:] == ["tpu-vm", "delete", "mine", "--quiet"]
    cloud.answers("tpu-vm describe", f"1 {NOT_FOUND}")
    assert "no slice and no request mine exists" in one_line(cloud.call("delete", "mine", "--yes"), 0)


def test_copy_sends_what_git_tracks_or_would(cloud, tmp_path):
    clone = tmp_path / "a clone"
    (clone / "launch").mkdir(parents=True)
    for name in ("tpu_setup.sh", "launch/tpu_host.sh", "launch/tpu_slice.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, clone / name)
    for name in (".gitignore", "old.py", "new name's.py"):
        (clone / name).write_text("runs/\n")
    git = ["git", "-C", str(clone), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "old.py"], check=True)
    (clone / "runs").mkdir()
    (clone / "runs/big").write_text("x")
    (cloud.folder / "run_on_host").touch()
    cloud.answers("tpu-vm scp", "255 ssh: connection refused", "0 ")
    assert cloud.call("copy", "mine", "--pause", "0", script=clone / "tpu_setup.sh").returncode == 0
    assert [words[3] for words in cloud.calls()] == ["scp", "scp", "ssh"], "the copy was tried again"
    sent = {"tpu_setup.sh", "pyproject.toml", ".gitignore", "old.py", "new name's.py"}
    assert {path.name for path in (cloud.host / "jaxlm").iterdir()} == sent | {"launch"}
    with tarfile.open(cloud.host / "jaxlm.tar.gz") as archive:
        assert "runs/big" not in archive.getnames()
    (cloud.host / "jaxlm/runs").mkdir()
    (clone / "old.py").unlink()
    assert cloud.call("copy", "mine", script=clone / "tpu_setup.sh").returncode == 0
    left = {path.name for path in (cloud.host / "jaxlm").iterdir()}
    assert left == (sent | {"launch", "runs"}) - {"old.py"}, "what is deleted here goes there too; runs stay"


def test_setup_installs_on_every_host(cloud):
    found = cloud.call("setup", "mine", "--bucket", "gs://b", "--venv", "/home/me/my venv", "--internal-ips")
    assert found.returncode == 0
    scp, unpack, install = cloud.calls()
    assert scp[3] == "scp" and scp[5:] == ["mine:jaxlm-new.tar.gz", "--worker=all", "--internal-ip"]
    assert unpack[3:6] == install[3:6] == ["ssh", "mine", "--worker=all"]
    command = install[6].removeprefix("--command=")
    assert shlex.split(command) == ["jaxlm/tpu_setup.sh", "install", "--venv", "/home/me/my venv", "--bucket", "b"]


def test_only_a_lost_connection_is_tried_again(cloud):
    cloud.answers("tpu-vm ssh", "255 lost")
    assert "failed on mine" in one_line(cloud.call("stop", "mine", "--pause", "0"), 1)
    assert len(cloud.calls()) == 3
    cloud.answers("tpu-vm ssh", "1 what the command itself says")
    assert "failed on mine" in one_line(cloud.call("stop", "mine", "--pause", "0"), 1)
    assert len(cloud.calls()) == 4


def test_run_passes_every_word_as_it_is(cloud):
    words = ["jaxlm", "train", "experiments/x.py:tiny", "--workdir", "a b/it's", "--note", '$HOME `id` "q" \\ &']
    assert cloud.call("run", "mine", "--max-restarts", "3", "--", *words).returncode == 0
    (asked,) = cloud.calls()
    assert asked[2:6] == ["tpu-vm", "ssh", "mine", "--worker=all"]
    command = asked[6].removeprefix("--command=")
    assert command.startswith('cd jaxlm && PATH="$HOME"/jaxlm-venv/bin:"$PATH" launch/host_run.sh start 3 jaxlm train')
    echoed = command.replace("launch/host_run.sh start 3", "printf '%s\\0'").replace("cd jaxlm", "true")
    said = subprocess.run(["bash", "-c", echoed], capture_output=True, text=True, check=True).stdout
    assert said.split("\0")[:-1] == words


DRY = {
    "create": ["--type", "v4-8"],
    "queue": ["--type", "v4-8"],
    "status": [],
    "copy": [],
    "setup": [],
    "run": [],
    "logs": [],
    "wait": [],
    "stop": [],
    "delete": [],
}


@pytest.mark.parametrize("verb", DRY)
def test_dry_run_shows_commands_and_runs_none(cloud, verb):
    tail = ["--", "jaxlm", "doctor"] if verb == "run" else []
    found = cloud.call(verb, "mine", *DRY[verb], "--dry-run", *tail)
    assert found.returncode == 0 and not found.stderr and not cloud.calls()
    shown = [shlex.split(line)[1:] for line in found.stdout.splitlines() if line.startswith("+ ")]
    assert shown and all(words[:3] == ["gcloud", "compute", "tpus"] for words in shown if words[0] != "pack")


USAGE = {
    "verb": (["craete", "mine"], "no command 'craete'"),
    "no name": (["status"], "needs the name of a slice"),
    "name": (["status", "My_Slice"], "'My_Slice' is not a valid name"),
    "option": (["status", "mine", "--zoen", "x"], "unknown argument '--zoen'"),
    "value": (["status", "mine", "--zone"], "--zone needs a value"),
    "no type": (["create", "mine"], "expected --type"),
    "type": (["create", "mine", "--type", "v9-8"], "type 'v9-8' is unknown"),
    "alias": (["queue", "mine", "--type", "v5e-16"], "--type v5litepod-16"),
    "no command": (["run", "mine"], "expected a command"),
    "number": (["run", "mine", "--max-restarts", "x", "--", "ls"], "whole numbers, found 'x'"),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_line_ends_in_one_line(cloud, case):
    words, expected = USAGE[case]
    found = cloud.call(*words)
    assert expected in one_line(found, 2) and len(found.stderr.splitlines()) == 1
    assert not cloud.calls()
