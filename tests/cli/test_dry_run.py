"""`jaxlm train --dry-run`, `--no-test`, and the command that starts from the parameters of a finished run."""

import json
import shlex
import shutil

from fixtures import cli_runs

command, trained, workdir = cli_runs.command, cli_runs.trained, cli_runs.workdir  # fixtures
TINY = f"{cli_runs.EXPERIMENT}:tiny"


def test_a_dry_run_shows_the_first_step_and_writes_nothing(command, workdir, tmp_path):
    found = command("train", TINY, "--workdir", tmp_path / "new", "--dry-run")
    assert found.code == 0, found.err
    assert not (tmp_path / "new").exists()
    record = json.loads(found.lines[-1])
    assert record["parameters"] > 0 and record["batch"]["source_BS"][0] == record["batch"]["target_BT"][0]
    memory = record["memory_bytes"]
    assert memory["total"] > memory["parameters"] == 4 * record["parameters"]
    assert "batches: " in found.err and "memory of a step" in found.err


def test_a_run_of_other_options_is_refused_with_the_command_of_a_warm_start(command, workdir, tmp_path):
    old = tmp_path / "my run"
    shutil.copytree(workdir, old)
    expected = f"jaxlm train {TINY} --seed 9 --workdir '{old}-2' --finetuning.init '{old}'"
    before = sorted(old.rglob("*"))
    found = command("train", TINY, "--workdir", old, "--seed", "9")
    assert found.code == 1 and "seed: 9 here, 0 in" in found.err
    assert found.err.rstrip().endswith(expected)
    dry = command("train", TINY, "--dry-run", "--workdir", old, "--seed", "9")
    assert dry.code == 1 and expected.replace("--seed", "--dry-run --seed") in dry.err
    assert sorted(old.rglob("*")) == before, "nothing was written"
    cure = command(*shlex.split(expected)[1:], "--dry-run")
    assert cure.code == 0 and f"from {old} (steps [2, 4])" in cure.err


def test_without_test_its_files_are_not_read(command, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxlm.training.loop.train", lambda *_: {"step": 2})
    words = ("train", f"{cli_runs.EXPERIMENT}:missing", "--workdir", tmp_path)
    assert "nowhere.en was not found" in command(*words).err
    found = command(*words, "--no-test")
    assert found.code == 0, found.err
    assert "test" not in json.loads(found.lines[-1])
