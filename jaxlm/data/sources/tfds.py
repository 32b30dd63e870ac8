"""Pairs from a prepared TensorFlow Datasets folder (`wmt14_translate/de-en`), read without TensorFlow.

The folder `<data_dir>/<name>/<config>/<version>` describes itself, so no builder class is needed. TFDS reads
records in the array_record format without TensorFlow; the tfrecord format needs TensorFlow and is refused.
"""

import importlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.data.files import MAX_TEXT_BYTES, OnBadLine, ReadStats, decode_invalid_utf8, too_large
from jaxlm.data.sources.base import FilteredPairs
from jaxlm.errors import UserError, one_line

VERSION_PATTERN = re.compile(r"\d+\.\d+\.\d+")

RECORDS_PER_READ = 1024


@dataclass(frozen=True)
class Tfds(FilteredPairs):
    """Two text features of a TFDS dataset, in the order of its files.

    `name` is `dataset/config` or `dataset/config:version` (default: the newest); `split` may be a slice
    (`train[:10%]`); `source` and `target` are feature names. `data_dir` is the folder of all datasets, by default
    `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`. A text has at most `max_text_bytes`. Raises UserError for a missing
    dataset, split or feature.
    """

    name: str
    split: str
    source: str
    target: str
    data_dir: str | None = None
    on_bad_line: OnBadLine = "error"
    keep_blank: bool = False
    max_text_bytes: int = MAX_TEXT_BYTES

    def describe(self) -> str:
        return f"TFDS {self.name} {self.split}, {self.source} -> {self.target}"

    def _read_rows(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        rows = self.data_source()
        for start in range(0, len(rows), RECORDS_PER_READ):
            keys = range(start, min(start + RECORDS_PER_READ, len(rows)))
            try:
                batch = rows.__getitems__(keys)
            except Exception as error:
                raise UserError(
                    f"{self.find_folder()}: records {keys[0]:,} to {keys[-1]:,} of {self.split} cannot be read "
                    f"({error}). Copy the folder again. {self._prepare_command()}"
                ) from error
            for number, row in zip(keys, batch, strict=True):
                source, target = (self._decode_feature(row, f, number, stats) for f in (self.source, self.target))
                yield source, target

    def _decode_feature(self, row: dict[str, bytes], feature: str, number: int, stats: ReadStats) -> str | None:
        raw = row[feature]
        if not isinstance(raw, bytes):
            raise UserError(
                f"{self.describe()}: feature {feature!r} holds {type(raw).__name__}, expected one text a record"
            )
        place = f"{self.describe()}, record {number}, {feature!r}"
        if len(raw) > self.max_text_bytes:
            raise UserError(f"{place}: {too_large('the text', self.max_text_bytes)}")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return decode_invalid_utf8(raw, place, self.on_bad_line, stats)

    def data_source(self) -> Any:
        """The random-access source of TFDS, whose rows are dicts of bytes."""
        folder = self.find_folder()
        try:
            import tensorflow_datasets
        except ImportError as error:
            raise UserError("reading a TFDS dataset needs: pip install tensorflow-datasets array-record") from error
        try:
            builder = tensorflow_datasets.builder_from_directory(folder)
        except Exception as error:
            raise UserError(f"{folder} is not a readable TFDS dataset ({error}). {self._prepare_command()}") from error
        features = builder.info.features
        features = set(features.keys()) if hasattr(features, "keys") else set()
        if missing := [feature for feature in (self.source, self.target) if feature not in features]:
            raise UserError(
                f"{folder} has the features {', '.join(sorted(features)) or 'unnamed'}, not {', '.join(missing)}"
            )
        try:
            return builder.as_data_source(self.split)
        except NotImplementedError as error:
            raise UserError(
                f"{folder} is in the {builder.info.file_format.value} format, which TFDS reads only with TensorFlow; "
                "array_record is expected. On a machine with TensorFlow: tfds convert_format "
                f"--dataset_version_dir={folder} --out_file_format=array_record --out_dir=NEW_FOLDER. "
                f"{self._prepare_command()}"
            ) from error
        except ValueError as error:
            splits = ", ".join(builder.info.splits)
            raise UserError(f"{folder} has the splits {splits}, not {self.split!r} ({error})") from error

    def find_folder(self) -> Path:
        """The folder of the newest version (or that of `:version`) on disk."""
        name, _, version = self.name.partition(":")
        root = Path(self.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        versions = [child for child in (root / name).glob("*") if VERSION_PATTERN.fullmatch(child.name)]
        versions = [child for child in versions if version in ("", child.name) and child.is_dir()]
        if versions:
            return max(versions, key=lambda child: tuple(int(part) for part in child.name.split(".")))
        raise UserError(f"no TFDS dataset in {root / name / (version or '<version>')}. {self._prepare_command()}")

    def _prepare_command(self) -> str:
        where = f" TFDS_DATA_DIR={self.data_dir}" if self.data_dir else ""
        return f"To prepare it (this downloads the corpus):{where} `jaxlm data get {self.name}`"


def prepare_data_set(name: str) -> None:
    """Download a data set of tensorflow-datasets into $TFDS_DATA_DIR and write it as ArrayRecord. Raises UserError."""
    try:
        import tensorflow_datasets as tfds

        if name.startswith("wmt"):  # without TensorFlow its builders are not found unless their module is imported
            importlib.import_module(f"tensorflow_datasets.translate.{name.partition('_')[0]}")
        data_dir = os.environ.get("TFDS_DATA_DIR")
        tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()
    except ImportError as error:
        raise UserError(
            f"{name} needs more packages ({error}): pip install tensorflow-datasets array-record"
        ) from error
    except Exception as error:
        raise UserError(f"tensorflow-datasets could not prepare {name} ({one_line(error)}): start again") from error
