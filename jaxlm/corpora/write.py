"""Pass 3: the documents that are kept, in their order, without evaluation sets, as shards with a table of documents."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from jaxlm.corpora.contamination import Decontaminate, evidence_of
from jaxlm.corpora.croissant import croissant_record
from jaxlm.corpora.document import Document, Drop
from jaxlm.corpora.passes import DOCS, Builder, npy_bytes, pack_lines
from jaxlm.corpora.personal import Personal
from jaxlm.data.files import ReadStats, find_file
from jaxlm.data.sources.text import TextSource
from jaxlm.data.storage.shards import ShardRecord, build_shards, map_in_order
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError
from jaxlm.filesystem import lock_folder, write_atomic


@dataclass(frozen=True, eq=False)
class KeptTexts(TextSource):
    """The texts of the documents that pass 2 keeps; `rows`: (id, source, digest, 0) of those read last."""

    builder: Builder
    names: list[str]
    keep_D: np.ndarray
    cuts: dict[str, Document | Drop]
    rows: list[tuple] = field(default_factory=list)

    def describe(self) -> str:
        return f"the corpus of {', '.join(source.name for source in self.builder.corpus.sources)}"

    def read(self, stats: ReadStats) -> Iterator[str]:
        number = {source.name: index for index, source in enumerate(self.builder.corpus.sources)}
        self.rows.clear()
        place = 0
        for name in self.names:
            for document in self.builder.texts(name):
                place += 1
                result = self.cuts.get(document.id, document)
                if self.keep_D[place - 1] and isinstance(result, Document):
                    stats.kept += 1
                    self.rows.append((bytes.fromhex(result.id), number[result.source], result.digest, 0))
                    yield result.text


def reduce_corpus(
    builder: Builder, stats: ReadStats, on_part: Callable[[dict, bool], None] = lambda record, kept: None
) -> tuple[KeptTexts, list[dict]]:
    """Passes 1 and 2: what pass 3 writes, and the records of the parts."""
    builder.corpus.check()
    with lock_folder(builder.folder):
        records = builder.map_parts(stats, on_part)
        keep_D, names = builder.reduce(records), [record["name"] for record in records]
        return KeptTexts(builder, names, keep_D, _decontaminate(builder, names, keep_D)), records


def build_corpus(
    builder: Builder,
    make_tokenizer: Callable[[KeptTexts], Tokenizer],
    stats: ReadStats,
    on_part: Callable[[dict, bool], None] = lambda record, kept: None,
    on_shard: Callable[[ShardRecord, bool], None] = lambda record, kept: None,
) -> dict[str, Any]:
    """All three passes; the totals. Raises UserError for faults of the sources, and if no document is left."""
    texts, records = reduce_corpus(builder, stats, on_part)
    if next(iter(texts), None) is None:
        raise UserError("no document is left after the steps: `jaxlm prepare MODULE:NAME --sample 1000` shows why")
    counts: Counter = Counter()

    def write_docs(record: ShardRecord, kept: bool) -> None:
        table = np.array(texts.rows[: record.rows], DOCS)
        del texts.rows[: record.rows]
        table["tokens"] = record.open(builder.folder).lengths
        for source, tokens in zip(table["source"].tolist(), table["tokens"].tolist(), strict=True):
            counts[source, "tokens"] += tokens
            counts[source, "documents"] += 1
        write_atomic(builder.folder / f"{record.name}.docs.npy", npy_bytes(table))
        on_shard(record, kept)

    tokenizer, size = make_tokenizer(texts), builder.part_bytes
    documents = texts.read(ReadStats())
    totals = build_shards(documents, builder.folder, tokenizer, texts.describe(), builder.processes, size, write_docs)
    _write_manifest(texts, records, counts)
    return totals | {"read": sum(record["read"] for record in records), "parts": len(records)}


def _decontaminate(builder: Builder, names: list[str], keep_D: np.ndarray) -> dict[str, Document | Drop]:
    """The documents that lose passages of evaluation sets; writes the share of each set's items that were there."""
    step = next((step for step in builder.corpus.steps if isinstance(step, Decontaminate)), None)
    if step is None:
        return {}
    masks = [mask for mask in builder.corpus.steps if isinstance(mask, Personal)]
    evidence, counts, place = evidence_of(step, masks), Counter[int](), 0
    hit: list[tuple[str, int]] = []
    search = partial(_search, builder=builder, step=step, evidence=evidence)
    for number, (result, _) in enumerate(map_in_order(search, ((name, None) for name in names), builder.processes)):
        size, by_row = result
        for row in (row for row in by_row if keep_D[place + row]):
            counts.update(by_row[row])
            hit.append((names[number], row))
        place += size
    evidence, cuts, lines = evidence_of(step, masks, counts), {}, []
    for name in dict.fromkeys(name for name, _ in hit):
        rows = {row for part, row in hit if part == name}
        for document in (text for row, text in enumerate(builder.texts(name)) if row in rows):
            if (result := step.cut(document, evidence)) != document:
                cuts[document.id] = result
                lines.append([document.id, *(result if isinstance(result, Drop) else ("cut", len(result.text)))])
    write_atomic(builder.folder / "contamination.gz", pack_lines(lines))
    sets = {name: {"items": 0, "too short": 0, "in the corpus": 0} for name in step.sets}
    for name, hash_N, n in step.items(masks):
        sets[name]["items"] += 1
        sets[name]["too short"] += not len(hash_N)
        sets[name]["in the corpus"] += bool(len(hash_N) and np.isin(hash_N, evidence[n]).any())
    write_atomic(builder.folder / "contamination.json", json.dumps(sets, indent=1))
    return cuts


def _search(name: str, builder: Builder, step: Decontaminate, evidence: dict[int, np.ndarray]) -> tuple[int, dict]:
    """The number of documents of a part, and of those with evidence: row -> hashes."""
    size, by_row = 0, {}
    for row, document in enumerate(builder.texts(name)):
        size = row + 1
        if hashes := {int(h) for hash_N in step.hits(document, evidence).values() for h in hash_N[hash_N != 0]}:
            by_row[row] = hashes
    return size, by_row


def _write_manifest(texts: KeptTexts, records: list[dict], counts: Counter) -> None:
    builder, entries = texts.builder, []
    for number, source in enumerate(builder.corpus.sources):
        digests = {path: hashlib.sha256(find_file(path).read_bytes()).hexdigest() for path in source.paths}
        entry = {"name": source.name} | asdict(source.license) | {"sha256": digests}
        entry |= {"documents_in": sum(record["sources"].get(source.name, 0) for record in records)}
        entries.append(entry | {"documents_out": counts[number, "documents"], "tokens_out": counts[number, "tokens"]})
    lists = [asdict(part) | {"sha256": part.digest} for part in builder.corpus.opt_out]
    manifest = {"version": 1, "sources": entries, "opt_out": lists, "licenses": asdict(builder.corpus.licenses)}
    write_atomic(builder.folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    record = croissant_record(texts.describe(), entries, builder.corpus.steps)
    write_atomic(builder.folder / "croissant.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
