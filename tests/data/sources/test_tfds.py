"""Pairs from a TFDS folder: a small dataset in TFDS's own format, written and read without TensorFlow."""

import json
import shutil
import subprocess
import sys

import pytest

from jaxlm.data.files import ReadStats
from jaxlm.data.sources.base import iter_pairs
from jaxlm.data.sources.tfds import RECORDS_PER_READ, Tfds
from jaxlm.errors import UserError

NAME, ROWS = "wmt14_translate/de-en", 2 * RECORDS_PER_READ + 7


def prepare(folder, config: str, rows: dict[str, list[tuple[str | bytes, str | bytes]]]) -> None:
    """Writes what preparing `wmt14_translate/<config>` leaves: `<folder>/wmt14_translate/<config>/1.0.0`."""
    import tensorflow_datasets as tfds

    class Wmt14Translate(tfds.core.GeneratorBasedBuilder):
        __module__ = "wmt14_translate"  # TFDS looks for a builder's files in the folder of its module
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version="1.0.0")]

        def _info(self):
            features = tfds.features.Translation(languages=("de", "en"))
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("de", "en"))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(pairs) for split, pairs in rows.items()}

        def _generate_examples(self, pairs):
            for number, (en, de) in enumerate(pairs):
                yield number, {"en": en, "de": de}

    Wmt14Translate(data_dir=folder, config=config, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    train = [(f"sentence {number}", f"Satz {number} \u00fc \U0001f642") for number in range(ROWS)]
    odd = [("a", "A"), (" ", "blank"), ("bad", b"na\xefve")]
    prepare(folder, "de-en", {"train": train, "validation": train[:20], "test": odd})
    return folder


def source(data_dir, split="train", source="en", target="de", **options) -> Tfds:
    return Tfds(NAME, split, source, target, str(data_dir), **options)


def test_all_pairs_in_either_direction(data_dir):
    expected = {(f"sentence {number}", f"Satz {number} \u00fc \U0001f642") for number in range(ROWS)}
    pairs = source(data_dir)
    rows = list(pairs)
    assert len(rows) == ROWS and set(rows) == expected
    assert list(pairs) == rows
    assert list(source(data_dir, source="de", target="en")) == [(de, en) for en, de in rows]
    assert pairs.describe() == "TFDS wmt14_translate/de-en train, en -> de"
    assert pairs.check() == ReadStats(kept=ROWS)


def test_splits_slices_and_versions(data_dir):
    assert len(list(source(data_dir, "validation"))) == 20
    assert len(list(source(data_dir, "train[:10%]"))) == round(ROWS * 0.1)
    named = Tfds(NAME + ":1.0.0", "validation", "en", "de", str(data_dir))
    assert list(named) == list(source(data_dir, "validation"))


def test_the_newest_version_is_read(data_dir, tmp_path):
    shutil.copytree(data_dir / NAME, tmp_path / NAME)
    for version in ("0.9.0", "0.10.0"):
        shutil.copytree(tmp_path / NAME / "1.0.0", tmp_path / NAME / version)
    (tmp_path / NAME / "2.0.0.incomplete").mkdir()
    assert source(tmp_path).find_folder().name == "1.0.0"
    shutil.rmtree(tmp_path / NAME / "1.0.0")
    assert source(tmp_path).find_folder().name == "0.10.0"


def test_the_folder_comes_from_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(list(Tfds(NAME, "validation", "en", "de"))) == 20


def test_bad_records(data_dir):
    with pytest.raises(UserError, match="test, en -> de, record [0-2], 'de': not UTF-8"):
        list(source(data_dir, "test"))
    bad = ReadStats()
    assert list(iter_pairs(source(data_dir, "test", on_bad_line="skip"), bad)) == [("a", "A")]
    assert bad == ReadStats(kept=1, skipped=1, blank=1)
    assert ("bad", "na\ufffdve") in list(source(data_dir, "test", on_bad_line="replace"))


def test_what_is_not_there_is_named_with_the_cure(data_dir, tmp_path):
    with pytest.raises(UserError) as error:
        list(source(tmp_path))
    for part in (
        f"{tmp_path}/wmt14_translate/de-en",
        f"TFDS_DATA_DIR={tmp_path} `jaxlm data get wmt14_translate/de-en`",
    ):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"de-en/3\.0\.0"):
        list(Tfds(NAME + ":3.0.0", "train", "en", "de", str(data_dir)))
    with pytest.raises(UserError, match="splits train, validation, test, not 'dev'"):
        list(source(data_dir, "dev"))
    with pytest.raises(UserError, match="features de, en, not fr"):
        list(source(data_dir, source="fr"))


def test_the_tfrecord_format_is_refused_with_the_cure(data_dir, tmp_path):
    shutil.copytree(data_dir / NAME, tmp_path / NAME)
    file = tmp_path / NAME / "1.0.0" / "dataset_info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="in the tfrecord format.*convert_format.*array_record"):
        list(source(tmp_path))


def test_a_feature_that_is_no_text_is_named(data_dir):
    with pytest.raises(UserError, match="feature 'en' holds int, expected one text"):
        source(data_dir)._decode_feature({"en": 3}, "en", 0, ReadStats())  # type: ignore[dict-item]


def test_a_text_has_a_limit(data_dir):
    with pytest.raises(UserError, match="test, en -> de, record [0-2], 'de': the text has more than 4 bytes"):
        list(source(data_dir, "test", max_text_bytes=4))


def test_damaged_folders(data_dir, tmp_path):
    shutil.copytree(data_dir / NAME, tmp_path / NAME)
    folder = tmp_path / NAME / "1.0.0"
    (shard,) = folder.glob("*train*")
    content = shard.read_bytes()
    half = len(content) // 2
    for damaged in (content[:half], content[:half] + bytes(64) + content[half + 64 :], None):
        if damaged is None:
            shard.unlink()
        else:
            shard.write_bytes(damaged)
        with pytest.raises(UserError, match="of train cannot be read"):
            list(source(tmp_path))
    (folder / "features.json").unlink()
    with pytest.raises(UserError, match="not a readable TFDS dataset"):
        list(source(tmp_path))


def test_tensorflow_is_never_imported(data_dir):
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from jaxlm.data.sources.tfds import Tfds\n"
        f"assert len(list(Tfds({NAME!r}, 'validation', 'en', 'de', {str(data_dir)!r}))) == 20\n"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
