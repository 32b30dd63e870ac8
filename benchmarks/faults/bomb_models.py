"""Workdirs and published models of absurd sizes (see `bombs`)."""

import json
import re
from collections.abc import Callable
from pathlib import Path


def experiment_with(field: str, value: int) -> Callable[[Path], object]:
    """A workdir of the small language model, which has another value in one field; its tokenizer is whole."""

    def make(path: Path) -> None:
        from benchmarks.faults.families import language_model
        from jaxlm import Bytes
        from jaxlm.workdir import Workdir

        workdir = Workdir(path.parent)
        workdir.write_experiment(language_model())
        Bytes().fit([]).save(workdir.tokenizer_folder)
        (path.parent / "checkpoints" / "1").mkdir(parents=True)
        record = workdir.experiment_file.read_text()
        changed = re.sub(rf'("model": {{[^{{}}]*?"{field}": )\d+', rf"\g<1>{value}", record, count=1, flags=re.DOTALL)
        assert changed != record, f"no field {field}"
        path.write_text(changed)
        workdir.experiment_file.unlink()

    return make


def published_with(field: str, value: int) -> Callable[[Path], object]:
    """A small published GPT-2 with another value in config.json."""

    def make(path: Path) -> None:
        from benchmarks.faults.readers_models import save_published

        path.mkdir()
        save_published("gpt2", path)
        config = json.loads((path / "config.json").read_text())
        assert field in config, f"no field {field}"
        (path / "config.json").write_text(json.dumps(config | {field: value}))

    return make


def tokenizer_of_many_ids(path: Path) -> None:
    """A tokenizer of a published model that claims 1e12 ids, under its right checksum."""
    from benchmarks.faults.readers_storage import byte_level_bpe
    from jaxlm.data.tokenizers.base import SpecialIds
    from jaxlm.data.tokenizers.pretrained import FastTokenizer

    FastTokenizer(byte_level_bpe(), 10**12, SpecialIds(pad=0, unk=3, bos=1, eos=2, start=1)).save(path)
