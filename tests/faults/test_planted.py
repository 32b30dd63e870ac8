"""Files of strangers: no module of theirs is imported, no link is followed out of their folder, no path leaves it."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks.faults.families import language_model
from benchmarks.faults.readers_models import save_published
from benchmarks.faults.readers_storage import prepare_shards
from jaxlm import Shards
from jaxlm.data.files import ReadStats
from jaxlm.errors import UserError
from jaxlm.huggingface.workdir import import_folder
from jaxlm.workdir import Workdir

pytest.importorskip("tokenizers")  # some of the files are made with it

SECRET = "the secret of another folder"


@pytest.fixture
def published(tmp_path) -> Path:
    """A small published GPT-2."""
    folder = tmp_path / "published"
    folder.mkdir()
    save_published("gpt2", folder)
    (folder / "generation_config.json").write_text("{}")  # without beams, with which a decoder is refused
    return folder


def test_the_whole_folder_is_imported(published, tmp_path):
    import_folder(published, tmp_path / "run")
    assert Workdir(tmp_path / "run").load().params


def contents(folder: Path) -> str:
    """The texts of all files below a folder."""
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("module", ["planted", "this", "antigravity", "idlelib.idle"])
@pytest.mark.parametrize("place", ["the workdir", "the current folder", "the search path"])
def test_no_module_is_imported_by_name(module, place, tmp_path, monkeypatch):
    """experiment.json names a type of a module that the user has not named."""
    (tmp_path / "planted.py").write_text("raise SystemExit('planted code ran')\n")
    workdir = Workdir(tmp_path if place == "the workdir" else tmp_path / "run")
    workdir.write_experiment(language_model())
    record = json.loads(workdir.experiment_file.read_text())
    record["experiment"]["model"] = {"type": f"{module}.Model", "layers": 1}
    workdir.experiment_file.write_text(json.dumps(record))
    if place == "the current folder":
        monkeypatch.chdir(tmp_path)
    if place == "the search path":
        monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop(module, None)
    with pytest.raises(UserError, match=module):
        workdir.read_experiment()
    assert module not in sys.modules


@pytest.mark.parametrize("name", ["added.json", "generation_config.json", "tokenizer_config.json", "extra.model"])
def test_links_are_not_followed_out_of_a_model(name, published, tmp_path):
    """A link to a file of the user is neither read nor copied into the workdir."""
    (tmp_path / "secret").write_text(json.dumps({"secret": SECRET}))
    (published / name).unlink(missing_ok=True)
    (published / name).symlink_to(tmp_path / "secret")
    try:
        import_folder(published, tmp_path / "run")
    except UserError as refusal:
        assert SECRET not in str(refusal)
    if (tmp_path / "run").exists():
        assert SECRET not in contents(tmp_path / "run")


@pytest.mark.parametrize("name", ["extra.json", "merges.txt", "extra.model"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "broken link"])
def test_what_is_no_file_leaves_no_half_workdir(name, kind, published, tmp_path):
    make = {"fifo": os.mkfifo, "folder": os.mkdir, "broken link": lambda path: os.symlink("nowhere", path)}[kind]
    make(published / name)
    try:
        import_folder(published, tmp_path / "run")
    except UserError:
        assert not (tmp_path / "run").exists()
    else:
        assert Workdir(tmp_path / "run").load().params


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/hostname", "a/../../x", "..", "", "\x00", "model\n.x"])
def test_an_index_names_no_file_of_another_folder(name, published, tmp_path):
    (published / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    with pytest.raises(UserError):
        import_folder(published, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../outside", "/outside", "..", "\x00"])
def test_a_shard_is_a_file_of_its_folder(name, tmp_path):
    """The names of shards are digits."""
    prepare_shards(tmp_path)
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    for end in (".ids", ".ends.npy"):
        (tmp_path / "shards" / f"00000{end}").rename(tmp_path / f"outside{end}")
    index["shards"][0]["name"] = name
    (tmp_path / "shards" / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError):
        list(Shards(str(tmp_path / "shards")).read(ReadStats()))
