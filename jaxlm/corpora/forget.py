"""Documents out of a finished corpus: cut out of its shards by their ends, out of the parts, and noted by id alone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.corpora.corpus import Corpus
from jaxlm.corpora.opt_out import OptOut, OptOutRules
from jaxlm.corpora.passes import Builder, hex_id, npy_bytes, pack_lines, read_lines_of
from jaxlm.data.ragged import Ragged
from jaxlm.data.storage.shards import SHARD_INDEX, ShardRecord, read_index, total_counts
from jaxlm.data.storage.token_cache import crc32_of_file, write_columns
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.errors import UserError
from jaxlm.filesystem import lock_folder, write_atomic
from jaxlm.json_files import read_json


def forget(folder: Path, entries: OptOut, near: bool = False) -> dict[str, Any]:
    """Remove the documents that the entries match; the shards that had some, and the new generation of the index.

    A call that was killed is repeated: what it had removed stays removed. Raises UserError if no document matches.
    """
    rules, builder = OptOutRules([entries]), Builder(Corpus(()), folder)
    with lock_folder(folder):
        names = sorted(file.name.partition(".")[0] for file in builder.parts_folder.glob("*.texts.gz"))
        matching = {text.id for name in names for text in builder.texts(name) if rules.reason(text, near)}
        noted = read_lines_of(folder / "forgotten.jsonl")
        tables = {file: np.load(file) for file in sorted(folder.glob("*.docs.npy"))}
        there = {hex_id(identity): hex_id(digest) for t in tables.values() for identity, digest in t[["id", "digest"]]}
        removed = matching | (rules.ids & (there.keys() | {line["id"] for line in noted}))
        if not removed:
            raise UserError(f"{folder} has no document that matches {entries.path}: see `jaxlm audit {folder}`")
        removed_ids = np.array([bytes.fromhex(identity) for identity in sorted(removed)], "S16")
        changed = []
        for file, table in tables.items():
            keep_D = ~np.isin(table["id"], removed_ids)
            if not keep_D.all():
                _cut_shard(folder, file.name.partition(".")[0], keep_D)
                write_atomic(file, npy_bytes(table[keep_D]))
                changed.append(file.name.partition(".")[0])
        index = read_json(folder / SHARD_INDEX)
        records = [ShardRecord.from_json(read_json(folder / f"{entry['name']}.json")) for entry in index["shards"]]
        index |= {"sums": total_counts(records), "shards": [vars(record) for record in records]}
        index["generation"] = index.get("generation", 0) + bool(changed)
        write_atomic(folder / SHARD_INDEX, json.dumps(index, indent=1))
        new = sorted(removed - {line["id"] for line in noted})
        noted += [{"id": i, "digest": there.get(i, ""), "reason": entries.path, "date": entries.date} for i in new]
        write_atomic(folder / "forgotten.jsonl", "".join(json.dumps(line) + "\n" for line in noted))
        for name in names:
            _cut_part(builder, name, removed_ids)
    return {"documents": len(new), "shards": changed, "generation": index["generation"]}


def _cut_shard(folder: Path, name: str, keep_D: np.ndarray) -> None:
    """Write the rows that are kept, then the record. A shard that a killed call has cut already has as few rows."""
    entry = read_json(folder / f"{name}.json")
    records, _ = read_index(folder)
    record = next(record for record in records if record.name == name)
    if entry["rows"] == int(keep_D.sum()) and ShardRecord.from_json(entry).is_intact(folder):
        return
    column, tokenizer = record.open(folder), load_tokenizer(folder / "tokenizer")
    ids, length_D = column.gather(np.flatnonzero(keep_D))
    texts = tokenizer.decode([column[row].tolist() for row in np.flatnonzero(~keep_D).tolist()])
    (stored,) = write_columns(folder, [{name: Ragged(ids, np.append(0, np.cumsum(length_D)))}])
    size = max(record.bytes - sum(len(text.encode()) for text in texts), 0)
    unknown = int(tokenizer.special.is_unknown(ids).sum())
    new = ShardRecord(**asdict(stored), unknown=unknown, bytes=size, text_digest="")
    write_atomic(folder / f"{name}.json", json.dumps(asdict(new) | {"tokenizer": entry["tokenizer"]}))


def _cut_part(builder: Builder, name: str, removed_ids: np.ndarray) -> None:
    """The files of a part without these documents; its decisions name the reason."""
    file = builder.parts_folder / name
    table = np.load(f"{file}.documents.npy")
    keep_D = ~np.isin(table["id"], removed_ids)
    if keep_D.all():
        return
    removed = {hex_id(identity) for identity in table["id"][~keep_D]}
    decisions = [[*d[:4], "forgotten", "", ""] if d[0] in removed else d for d in read_lines_of(f"{file}.decisions.gz")]
    texts = [asdict(text) for text in builder.texts(name) if text.id not in removed]
    files = {
        "texts.gz": pack_lines(texts),
        "decisions.gz": pack_lines(decisions),
        "documents.npy": npy_bytes(table[keep_D]),
    }
    if Path(f"{file}.bands.npy").exists():
        bands = np.load(f"{file}.bands.npy")
        bands = bands[keep_D[bands["document"]]]
        bands["document"] = (np.cumsum(keep_D) - 1)[bands["document"]]
        files["bands.npy"] = npy_bytes(bands)
    for ending, content in files.items():
        write_atomic(Path(f"{file}.{ending}"), content)
    record = read_json(Path(f"{file}.json")) | {"kept": int(keep_D.sum())}
    record["crc32"] = {f"{name}.{ending}": crc32_of_file(Path(f"{file}.{ending}")) for ending in files}
    write_atomic(Path(f"{file}.json"), json.dumps(record))
