"""`jaxlm launch`: the commands and manifests, without JAX, a cloud or a cluster."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import cli_runs

from jaxlm.cli.training import launch
from jaxlm.cli.training.launch import parse_tpu_type
from jaxlm.errors import UserError
from jaxlm.filesystem import check_writable

ROOT = Path(__file__).resolve().parents[2]
command = cli_runs.command  # fixture
QUICK = ["experiments.quickstart", "--workdir", "runs/My_Run"]
TPU = ["tpu", *QUICK, "--type", "v4-8"]
GKE = ["gke", *QUICK, "--type", "v6e-16", "--image", "eu.pkg.dev/p/jaxlm", "--claim", "disk"]


@pytest.mark.parametrize("name, chips, hosts, topology", [
    ("v2-8", 4, 1, ""), ("v3-32", 16, 4, ""), ("v4-8", 4, 1, "2x2x1"), ("v4-32", 16, 4, "2x2x4"),
    ("v5litepod-1", 1, 1, "1x1"), ("v5litepod-8", 8, 1, "2x4"), ("v5litepod-16", 16, 4, "4x4"),
    ("v5litepod-256", 256, 64, "16x16"), ("v5p-8", 4, 1, "2x2x1"), ("v5p-128", 64, 16, "4x4x4"),
    ("v6e-8", 8, 1, "2x4"), ("v6e-64", 64, 16, "8x8"),
])  # fmt: skip
def test_shape_of_a_slice(name, chips, hosts, topology):
    found = parse_tpu_type(name)
    assert (found.chips, found.hosts, found.topology) == (chips, hosts, topology)


def test_topology_has_the_chips_of_the_type():
    assert parse_tpu_type("v5p-48", "2x3x4").topology == "2x3x4"
    with pytest.raises(UserError, match="product of 16"):
        parse_tpu_type("v5litepod-16", "2x4")


def test_slurm_submits_one_task_per_gpu(command):
    words = ["--nodes", "2", "--gpus-per-node", "4", "--time", "12:00:00", "--sbatch=--qos=low", "--dry-run"]
    found = command("launch", "slurm", *QUICK, *words, "--", "--steps", "5", "--finetuning.init", "it's")
    assert found.code == 0 and not found.err
    (line,) = found.lines
    sbatch = shlex.split(line)
    script = sbatch.index(str(ROOT / "launch/slurm.sbatch"))
    expected = {"--job-name=my-run", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=12:00:00"}
    assert set(sbatch[1:script]) == expected | {"--qos=low", "--export=ALL,JAXLM_RESTARTS=50"}
    train = [sys.executable, "-m", "jaxlm", "train", *QUICK, "--steps", "5", "--finetuning.init", "it's"]
    assert sbatch[script + 1 :] == train


def test_the_manifest_is_a_jobset(command):
    yaml = pytest.importorskip("yaml")
    odd = "$(HOME): 'x' \"y\" # z"
    found = command("launch", *GKE, "--spot", "--max-restarts", "7", "--dry-run", "--", "--finetuning.init", odd)
    assert found.code == 0, found.err
    manifest = yaml.safe_load(found.out.decode())
    assert manifest["kind"] == "JobSet" and manifest["metadata"]["name"] == "my-run"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (1, 4, 4, 0)
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "what podFailurePolicy asks for"
    labels = {"gke-tpu-accelerator": "tpu-v6e-slice", "gke-tpu-topology": "4x4", "gke-spot": "true"}
    assert pod["nodeSelector"] == {f"cloud.google.com/{name}": value for name, value in labels.items()}
    (container,) = pod["containers"]
    assert container["name"] == spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4} and container["image"] == "eu.pkg.dev/p/jaxlm"
    note = "$$(HOME): 'x' \"y\" # z"  # Kubernetes reads $$ as $
    assert container["command"] == ["jaxlm", "train", *QUICK, "--finetuning.init", note]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"]: container["workingDir"] for volume in pod["volumes"]}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "disk"}
    yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())


ODD_WORDS = [
    "$$", "a$b$$c$(d)$", "\x85", "\x7f", "\x80\x9f", "\u2028\u2029", "\ufeffx", "é😀", "a\nb\n\n", "\n", "", " ", "'",
    '"', "\\", "\t", "\x1b[0m", "&*!|>%@`#: {}[],?-", "~", "null", "0x1f", "\ue000\ufffd", "'\n'", "$'a'",
]  # fmt: skip
"""Words that shells, YAML or Kubernetes could read as something else."""


def _kubernetes(word: str) -> str:
    """Its expansion of references to variables, none of which is set: `$$` is `$`."""
    return re.sub(r"\$(\$|\([^)]*\))?", lambda match: "$" if match[0] == "$$" else match[0], word)


def test_odd_words_reach_the_pod_unchanged(command):
    yaml = pytest.importorskip("yaml")
    found = command("launch", *GKE, "--dry-run", "--", *(f"--finetuning.init={word}" for word in ODD_WORDS))
    assert found.code == 0, found.err
    template = yaml.safe_load(found.out.decode())["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    words = [
        _kubernetes(word).removeprefix("--finetuning.init=") for word in template["spec"]["containers"][0]["command"]
    ]
    assert words[5:] == ODD_WORDS
    undecodable = command("launch", *GKE, "--dry-run", "--", "--finetuning.init", "x\udcff")
    assert undecodable.code == 2 and "the byte 0xff is not UTF-8" in undecodable.err


def test_odd_words_reach_the_shells_of_the_hosts_unchanged():
    """`quoted` of tpu_setup.sh, read by two shells, as by ssh and by the host's own."""
    script = (ROOT / "tpu_setup.sh").read_text()
    function = script[script.index("quoted() {") : script.index("# Print a command")]
    for shell in ("sh", "bash"):
        words = ["bash", "-c", f'{function} quoted "$@"', "bash", *ODD_WORDS, "x\udcff"]
        line = subprocess.run(words, capture_output=True, check=True).stdout
        read = subprocess.run([shell, "-c", b"printf '%s\\0' " + line], capture_output=True, check=True).stdout
        assert read.decode(errors="surrogateescape").split("\0")[:-1] == [*ODD_WORDS, "x\udcff"]


def test_tpu_calls_the_script_step_by_step(monkeypatch, command):
    calls: list[list[str]] = []
    codes = iter([0, 0, 0, launch.PREEMPTED, 0, 0, 0, 0])
    monkeypatch.setattr(launch, "_run_command", lambda words: (calls.append(words[1:]), next(codes))[1])
    options = ["--type", "v5litepod-16", "--spot", "--zone", "z", "--bucket", "b"]
    assert command("launch", "tpu", *QUICK, *options, "--", "--steps", "5").code == 0
    assert [words[0] for words in calls] == ["queue", "setup", "run", "wait"] * 2, "a lost slice is requested again"
    queue, setup, run, wait = calls[:4]
    assert queue[1:] == ["my-run", "--type", "v5litepod-16", "--spot", "--replace", "--zone", "z"]
    assert setup[1:] == ["my-run", "--zone", "z", "--bucket", "b"] and wait[1:] == ["my-run", "--zone", "z"]
    train = ["jaxlm", "train", "experiments.quickstart", "--workdir", "../bucket/runs/My_Run", "--steps", "5"]
    assert run[1:] == ["my-run", "--zone", "z", "--max-restarts", "50", "--", *train]


def test_tpu_stops_at_the_first_step_that_fails(monkeypatch, command):
    calls: list[str] = []
    monkeypatch.setattr(launch, "_run_command", lambda words: (calls.append(words[1]), 1)[1])
    assert command("launch", *TPU).code == 1 and calls == ["queue"]


def test_tpu_dry_run_shows_every_command(tmp_path):
    (tmp_path / "gcloud").write_text("#!/bin/sh\nexit 99\n")
    (tmp_path / "gcloud").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    check = "import sys; from jaxlm.cli.main import main; code = main(sys.argv[1:]); assert 'jax' not in sys.modules"
    words = [sys.executable, "-c", f"{check}; sys.exit(code)", "launch", *TPU, "--dry-run"]
    found = subprocess.run(words, env=env, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0 and not found.stderr, found.stderr
    steps = [line for line in found.stdout.splitlines() if line.startswith("# ")]
    assert [step.split()[2] for step in steps] == ["queue", "setup", "run", "wait"]
    assert "+ gcloud compute tpus queued-resources create my-run" in found.stdout


USAGE = {
    "no place": ([], "expected a platform"),
    "place": (["slrum", *QUICK], "no platform 'slrum'"),
    "no workdir": (["slurm", QUICK[0]], "--workdir"),
    "option of train": (["slurm", *QUICK, "--steps", "5"], "put the options of `jaxlm train` after --"),
    "no option of train": (["slurm", *QUICK, "--", "--stepz", "5"], "did you mean --steps?"),
    "value of train": (["slurm", *QUICK, "--", "--max-minutes", "soon"], "--max-minutes"),
    "option": ([*TPU, "--zoen", "z"], "did you mean --zone?"),
    "experiment": (["slurm", "experiments.quickstrat", "--workdir", "x"], "did you mean experiments.quickstart?"),
    "address": (["slurm", QUICK[0], "--workdir", "gs://b/x"], "expected a folder"),
    "name": ([*TPU, "--name", "My"], "--name 'My': expected at most 52 lower-case"),
    "hosts": (["tpu", *QUICK, "--type", "v5litepod-16"], "4 hosts, which need one folder for all: give --bucket"),
    "spot": ([*TPU, "--spot"], "lost with its disk: give --bucket"),
    "type": (["tpu", *QUICK, "--type", "v5e-16"], "gcloud names it v5litepod-16"),
    "elsewhere": (["tpu", "HERE:x", *TPU[2:]], "which is copied to the slice"),
    "topology": ([*GKE[:5], "v5p-48", *GKE[6:]], "give --topology"),
    "not on GKE": ([*GKE[:5], "v3-8", *GKE[6:]], "the type is not on GKE"),
}


@pytest.mark.parametrize("case", USAGE)
def test_mistakes_end_in_one_line(command, tmp_path, case):
    words, expected = USAGE[case]
    (tmp_path / "mine.py").write_text("x = 1\n")
    found = command("launch", *[word.replace("HERE", str(tmp_path / "mine.py")) for word in words])
    assert found.code in (1, 2) and not found.out
    assert expected in found.err and len(found.err.splitlines()) == 1, found.err


def test_a_missing_program_is_named(command, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "sbatch is not on the PATH" in command("launch", "slurm", *QUICK).err
    assert "kubectl is not on the PATH" in command("launch", *GKE).err
    monkeypatch.setattr(launch, "CLONE", tmp_path)
    assert "needs a clone of jaxlm" in command("launch", "slurm", *QUICK).err


def test_a_workdir_on_a_bucket_is_refused_not_made_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is an address, expected a folder"):
        check_writable(Path("gs://bucket/run"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["tpu", "slurm", "gke"])
def test_help(command, where):
    assert "--workdir" in command("launch", where, "--help").out.decode()
    assert "slurm" in command("launch", "--help").out.decode()
