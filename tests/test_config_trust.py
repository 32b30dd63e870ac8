"""Reading a workdir runs no code of its author: which modules its experiment may import."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.cli_runs import command, environment  # noqa: F401

from jaxlm.config import trust
from jaxlm.config.serialization import to_json
from jaxlm.errors import UserError
from jaxlm.experiment import load_experiment
from jaxlm.workdir import Workdir

OWN = '''"""An objective of my own."""
import dataclasses
from jaxlm.experiment import Experiment, load_experiment
from jaxlm.objectives.next_token import NextToken


@dataclasses.dataclass(frozen=True)
class Mine(NextToken):
    weight: float = 2.0


def mine() -> Experiment:
    return dataclasses.replace(load_experiment("experiments.quickstart"), objective=Mine())
'''
PLANTED = "from pathlib import Path\nPath(__file__).with_name('it_ran').touch()\n" + OWN


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Call it for the state of a new process: modules that tests made are not loaded, named or found."""
    path = list(sys.path)

    def reset():
        monkeypatch.setattr(sys, "path", list(path))
        monkeypatch.setattr(trust, "_named", set())
        for name in ("own_module", "planted", "planted.inner"):
            monkeypatch.delitem(sys.modules, name, raising=False)

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    reset()
    return reset


def _record(folder: Path, type_name: str) -> Path:
    """The workdir of a stranger: its objective is a class of a planted module."""
    data = to_json(load_experiment("experiments.quickstart"))
    data["objective"] = {"type": type_name}
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "experiment.json").write_text(json.dumps({"format": 2, "experiment": data}))
    return folder / "run"


VERBS = {
    "evaluate": [], "predict": [], "generate": ["--prompt", "a"], "score": [], "embed": [], "report": [],
    "merge": ["new"], "export-hf": ["new"],
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_runs_a_planted_module(command, fresh, tmp_path, monkeypatch, verb):  # noqa: F811
    run = _record(tmp_path, "planted.Mine")
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.chdir(tmp_path)
    result = command(verb, run, *VERBS[verb])
    assert result.code == 1 and "planted.Mine, which is not a class of jaxlm" in result.err
    assert "--trust planted" in result.err and result.err.splitlines()[-1].startswith("jaxlm: ")
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("name", ["planted.inner.Mine", "planted.Outer.Mine", "this.Mine", "experiments.planted.Mine"])
def test_neither_packages_nor_the_standard_library_are_imported(fresh, tmp_path, monkeypatch, name, capsys):
    for folder in (tmp_path / "planted", tmp_path / "experiments"):
        folder.mkdir()
        for file in ("__init__.py", "inner.py", "planted.py"):
            (folder / file).write_text(PLANTED)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not a class of jaxlm"):
        Workdir(_record(tmp_path, name)).read_experiment()
    assert not list(tmp_path.rglob("it_ran")) and not capsys.readouterr().out


def test_the_initial_parameters_of_a_stranger(command, fresh, tmp_path, monkeypatch):  # noqa: F811
    run = _record(tmp_path, "planted.Mine")
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.chdir(tmp_path)
    result = command("show", "experiments.quickstart", "--finetuning.init", run)
    assert result.code == 1 and "--trust planted" in result.err and not (tmp_path / "it_ran").exists()


def test_the_list_of_experiments_reads_a_stranger_s_folder_and_runs_nothing(command, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "planted.py").write_text(PLANTED)
    (folder / "deep.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    (folder / "zero.py").write_bytes(b"x = '\0'")
    (folder / "latin.py").write_bytes(b"x = '\xff'")
    os.mkfifo(folder / "pipe.py")
    (folder / "dangling.py").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    result = command("list")
    lines = {line.split()[0]: line for line in result.lines}
    assert result.code == 0 and "experiments.planted:mine" in lines and not (folder / "it_ran").exists()
    for name in ("deep", "zero", "latin"):
        assert "is not valid Python" in lines[f"experiments.{name}"], name
    assert "cannot be read: " in lines["experiments.pipe"] and "not a regular file" in lines["experiments.pipe"]
    assert "cannot be read: " in lines["experiments.dangling"] and "does not exist" in lines["experiments.dangling"]


@pytest.mark.slow
def test_the_current_folder_hides_no_library(tmp_path):
    run = _record(tmp_path, "planted.Mine")
    for name in ("planted", "numpy", "json", "transformers", "tokenizers"):
        (tmp_path / f"{name}.py").write_text(PLANTED)
    words = [sys.executable, "-m", "jaxlm", "evaluate", str(run)]
    result = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "--trust planted" in result.stderr
    assert not (tmp_path / "it_ran").exists()


@pytest.fixture
def own_run(fresh, tmp_path):
    """A workdir of an experiment file with a class of its own, and that file."""
    file = tmp_path / "code" / "own_module.py"
    file.parent.mkdir()
    file.write_text(OWN)
    experiment = load_experiment(f"{file}:mine")
    run = Workdir(tmp_path / "run")
    run.create(experiment)
    assert run.read_experiment() == experiment  # its module is loaded
    fresh()
    return run, file


def test_a_file_that_the_user_trained_with_is_read_again(own_run, monkeypatch, tmp_path):
    run, file = own_run
    origin = json.loads(run.experiment_file.read_text())["modules"]["own_module"]
    assert origin == {"file": str(file.resolve()), "sha256": trust._digest(file)}
    monkeypatch.chdir(tmp_path)
    assert type(run.read_experiment().objective).__module__ == "own_module"


def test_a_file_that_cannot_be_imported_any_more(own_run, fresh, monkeypatch, tmp_path):
    run, file = own_run
    file.write_text(OWN.replace("import dataclasses", "import dataclasses, own_helper"))
    trust.remember({"own_module": {"file": str(file.resolve()), "sha256": trust._digest(file)}})
    record = json.loads(run.experiment_file.read_text())
    record["modules"]["own_module"]["sha256"] = trust._digest(file)
    run.experiment_file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"own_module.py, whose classes the experiment uses, .*own_helper"):
        run.read_experiment()
    assert "own_module" not in sys.modules
    (file.parent / "own_helper.py").write_text("")
    assert run.read_experiment().objective.weight == 2.0


def test_a_changed_file_and_a_record_of_another_machine_are_refused(own_run, fresh, monkeypatch, tmp_path):
    run, file = own_run
    file.write_text(PLANTED)
    with pytest.raises(UserError, match=r"\(it was .*own_module.py\). If you trust it, repeat with --trust own_module"):
        run.read_experiment()
    file.write_text(OWN)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another machine"))
    with pytest.raises(UserError, match="--trust own_module"):
        run.read_experiment()


def test_the_copy_in_the_workdir_is_read_by_choice(own_run, command, monkeypatch, tmp_path):  # noqa: F811
    run, file = own_run
    file.unlink()
    moved = tmp_path / "elsewhere"
    run.folder.rename(moved)
    assert (moved / "source" / "own_module.py").read_text() == OWN
    monkeypatch.chdir(tmp_path / "code")
    assert "--trust own_module" in command("evaluate", moved).err
    result = command("evaluate", moved, "--trust", "own_module")
    assert result.code == 1 and "there is no tokenizer" in result.err  # the experiment has been read
    assert dataclasses.asdict(Workdir(moved).read_experiment().objective)["weight"] == 2.0


def test_the_module_that_is_needed_is_named(own_run, command, monkeypatch, tmp_path):  # noqa: F811
    """Also if another one was named, and if the class is inside another; in Python, the lines that import it."""
    run, file = own_run
    file.unlink()
    record = json.loads(run.experiment_file.read_text())
    record["experiment"]["objective"]["type"] = "own_module.Outer.Mine"
    run.experiment_file.write_text(json.dumps(record))
    assert "repeat with --trust own_module, which" in command("evaluate", run, "--trust", "own_modul").err
    with pytest.raises(UserError) as refusal:
        run.read_experiment()
    (run.source_folder / "own_module.py").write_text(OWN + "\n\nclass Outer:\n    Mine = Mine\n")
    exec(str(refusal.value).partition("in Python: ")[2])
    assert run.read_experiment().objective.weight == 2.0


def test_experiments_in_a_wheel_are_trusted_and_found(tmp_path, monkeypatch):
    """A wheel has the experiments inside the library; a config may name their classes, and those of no neighbor."""
    folder = tmp_path / "shipped" / "experiments" / "in_a_wheel"
    folder.mkdir(parents=True)
    (folder / "tasks.py").write_text("class Task: ...\n")
    monkeypatch.setattr(trust, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(trust, "_named", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert trust.may_import("experiments.in_a_wheel.tasks")
    assert str(tmp_path / "shipped") in sys.path
    assert not trust.may_import("experiments.in_a_wheel.others") and not trust.may_import("experiments.in_a_wheel")
