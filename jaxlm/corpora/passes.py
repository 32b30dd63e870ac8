"""The three passes that build a corpus: map (each document by itself), reduce (duplicates), write (shards).

D/parts/00000.texts.gz        the documents that pass 1 kept, a JSON object a line
        00000.decisions.gz    a line for every document: id, source, language, markers, step, reason, figure
        00000.documents.npy   a row of `TABLE` for each kept document
        00000.bands.npy       the keys of their bands, sorted (`BAND`)
        00000.json            the record: digests of the input and of the steps, checksums; written last
D/duplicates.gz               a line for every duplicate: id, "exact" or "near", the id of the one that is kept
D/00000.docs.npy              of each shard: a row of `DOCS` for each of its documents
D/manifest.json               the sources with their terms, documents and tokens

A part is as many documents as reach `part_bytes` of input, so no byte depends on processes, interruptions, or the order
in which parts are done. Personal data is masked before anything is written.
"""

import gzip
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.corpora.corpus import Corpus
from jaxlm.corpora.document import Document, Drop
from jaxlm.corpora.duplicates import BAND, Duplicates, choose_kept, first_of_equal
from jaxlm.corpora.opt_out import OptOutRules
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import ConcatArray
from jaxlm.data.storage.shards import map_in_order
from jaxlm.data.storage.token_cache import crc32_of_file, update_digest
from jaxlm.errors import UserError
from jaxlm.filesystem import write_atomic
from jaxlm.json_files import read_json

PART_BYTES = 64 << 20
DOCS = np.dtype([("id", "S16"), ("source", "<i4"), ("digest", "S16"), ("tokens", "<i8")])


@dataclass(frozen=True)
class Part:
    """The documents of a part as they were read, and their digest."""

    name: str
    documents: list[Document]
    digest: str


@dataclass(frozen=True)
class Builder:
    """A corpus and the folder in which it is built."""

    corpus: Corpus
    folder: Path
    processes: int = 1
    part_bytes: int = PART_BYTES

    @property
    def parts_folder(self) -> Path:
        """Of the files of the first pass."""
        return self.folder / "parts"

    @cached_property
    def rules(self) -> OptOutRules:
        """The opt-out lists, and the documents that `jaxlm audit --forget` removed."""
        forgotten = [line["id"] for line in read_lines_of(self.folder / "forgotten.jsonl")]
        return OptOutRules(self.corpus.opt_out, self.corpus.seed, forgotten)

    @property
    def table(self) -> np.dtype:
        """The row of a kept document."""
        length = self.corpus.duplicates.signature_length if self.corpus.duplicates else 0
        return np.dtype([*DOCS.descr[:3], ("length", "<i8"), ("signature", "<u4", (length,))])

    def read_parts(self, stats: ReadStats) -> Iterator[Part]:
        """The documents of all sources, in order."""
        number, documents, size, digest = 0, [], 0, hashlib.blake2b(digest_size=16)
        for source in self.corpus.sources:
            for document in source.records(stats):
                size += update_digest(digest, document.text)
                update_digest(digest, json.dumps([document.id, document.meta], sort_keys=True))
                documents.append(document)
                if size >= self.part_bytes:
                    yield Part(f"{number:05}", documents, digest.hexdigest())
                    number, documents, size, digest = number + 1, [], 0, hashlib.blake2b(digest_size=16)
        if documents:
            yield Part(f"{number:05}", documents, digest.hexdigest())

    def map_parts(self, stats: ReadStats, on_part: Callable[[dict, bool], None]) -> list[dict]:
        """Pass 1: the records of all parts."""
        self.parts_folder.mkdir(exist_ok=True)
        for file in self.parts_folder.glob(".*.part"):
            file.unlink()
        checked, records = ((part, self.existing(part)) for part in self.read_parts(stats)), []
        for record, kept in map_in_order(partial(map_part, builder=self), checked, self.processes):
            records.append(record)
            on_part(record, kept)
        names = {record["name"] for record in records}
        for file in self.parts_folder.iterdir():
            if file.name.partition(".")[0] not in names:
                file.unlink()
        return records

    def existing(self, part: Part) -> dict | None:
        """The record of a part that was made of the same text by the same steps, and is undamaged."""
        try:
            record = read_json(self.parts_folder / f"{part.name}.json")
            intact = all(crc32_of_file(self.parts_folder / name) == crc for name, crc in record["crc32"].items())
            same = (record["input"], record["steps"]) == (part.digest, self.corpus.map_digest)
            return record if intact and same else None
        except (UserError, OSError, KeyError):
            return None

    def clean(self, document: Document) -> tuple[str, Document | Drop]:
        """The document after all steps; or the step that drops it, and why."""
        source = next(source for source in self.corpus.sources if source.name == document.source)
        license = document.meta.get("license", source.license.license)
        if (decision := self.corpus.licenses.decision(license)) == "refuse":
            place = f"source {source.name}, {document.meta['place']}"
            raise UserError(f"{place}: license {license}, which {self.corpus.licenses} refuses: allow or drop it")
        if decision == "drop":
            return "Licenses", Drop("license", license)
        if reason := self.rules.reason(document):
            return "OptOut", Drop(reason, 1)
        for step in self.corpus.map_steps:
            result = step.apply(document)
            if isinstance(result, Drop):
                return type(step).__name__, result
            document = result
        return ("", document) if document.text.strip() else ("empty", Drop("empty", 0))

    def sample(self, count: int) -> Iterator[str]:
        """Lines about the first `count` documents of each source: each rule, the share it drops, three of the texts."""
        self.corpus.check()
        documents = [d for source in self.corpus.sources for d in islice(source.records(ReadStats()), count)]
        reasons: dict[str, list[str]] = {}
        for document in documents:
            for step in self.corpus.map_steps:
                failures = step.failures(document) if hasattr(step, "failures") else ()
                for drop in failures:
                    reasons.setdefault(f"{type(step).__name__}: {drop.reason}", []).append(document.text)
                result = step.apply(document)
                document = document if isinstance(result, Drop) else result
        for reason, texts in sorted(reasons.items(), key=lambda item: -len(item[1])):
            yield f"{len(texts) / len(documents):7.2%}  {reason}"
            yield from (f"         {text[:100]!r}" for text in texts[:3])

    def texts(self, name: str) -> Iterator[Document]:
        """The documents that pass 1 kept of a part."""
        with gzip.open(self.parts_folder / f"{name}.texts.gz", "rt", encoding="utf-8", newline="\n") as lines:
            yield from (Document(**json.loads(line)) for line in lines)

    def reduce(self, records: list[dict]) -> np.ndarray:
        """Pass 2: True for each document of pass 1 that no other one replaces; writes the list of the others."""
        tables: Any = [np.load(self.parts_folder / f"{r['name']}.documents.npy", mmap_mode="r") for r in records]
        table, count = ConcatArray(tables), sum(map(len, tables))
        ids = np.concatenate([part["id"] for part in tables]) if count else np.zeros(0, "S16")
        if len(repeated := np.flatnonzero(first_of_equal(ids) != np.arange(count))):
            self._refuse_repeated(records, ids[repeated[0]])
        step, keep_D = self.corpus.duplicates, np.ones(count, bool)
        lines = []
        if step is not None and count:
            digest_D, length_D = (np.concatenate([part[name] for part in tables]) for name in ("digest", "length"))
            source_D = np.concatenate([part["source"] for part in tables])
            first_D, index_D = first_of_equal(digest_D), np.arange(count)
            pairs = [np.stack([index_D, first_D], 1)[first_D != index_D]]
            if step.near:
                bands = [np.load(self.parts_folder / f"{r['name']}.bands.npy", mmap_mode="r") for r in records]
                starts = np.cumsum([0, *map(len, tables)]).tolist()
                pairs += step.near_pairs(bands, starts, lambda rows: table[rows]["signature"], first_D == index_D)
            priority_D = np.array([source.priority for source in self.corpus.sources])[source_D]
            kept_D = choose_kept(count, np.concatenate(pairs), (priority_D, -length_D, ids))
            keep_D = kept_D == index_D
            for row in np.flatnonzero(~keep_D).tolist():
                kind = "exact" if digest_D[row] == digest_D[kept_D[row]] else "near"
                lines.append([hex_id(ids[row]), kind, hex_id(ids[kept_D[row]])])
        write_atomic(self.folder / "duplicates.gz", pack_lines(lines))
        return keep_D

    def _refuse_repeated(self, records: list[dict], identity: bytes) -> None:
        same = [text for record in records for text in self.texts(record["name"]) if text.id == hex_id(identity)]
        places = " and ".join(text.meta["place"] for text in same)
        raise UserError(
            f"source {same[0].source}: {places} have one key, so the id {same[0].id} is there twice: choose a key that "
            "differs, or key='' to count records"
        )


def map_part(part: Part, builder: Builder) -> dict[str, Any]:
    """Pass 1 of one part: write its files, then its record, which is returned."""
    corpus, folder = builder.corpus, builder.parts_folder
    kept: list[dict] = []
    decisions, numbers = [], {source.name: number for number, source in enumerate(corpus.sources)}
    table = np.zeros(len(part.documents), builder.table)
    for document in part.documents:
        markers = [name for name, words in (corpus.markers or {}).items() if not set(words).isdisjoint(document.tokens)]
        step, result = builder.clean(document)
        drop = result if isinstance(result, Drop) else Drop("", "")
        if isinstance(result, Document):
            signature: Any = corpus.duplicates.signature(result, corpus.seed) if corpus.duplicates else 0
            row = bytes.fromhex(result.id), numbers[result.source], result.digest, len(result.text)
            table[len(kept)] = (*row, signature)
            kept.append(asdict(result))
        language = result.meta.get("language") if isinstance(result, Document) else document.meta.get("language")
        decisions.append([document.id, document.source, language, markers, step, *drop])
    table = table[: len(kept)]
    files = {"texts.gz": pack_lines(kept), "decisions.gz": pack_lines(decisions), "documents.npy": npy_bytes(table)}
    if corpus.duplicates and corpus.duplicates.near:
        files["bands.npy"] = npy_bytes(_bands(corpus.duplicates, table["signature"]))
    for name, content in files.items():
        write_atomic(folder / f"{part.name}.{name}", content)
    record = {"name": part.name, "input": part.digest, "steps": corpus.map_digest, "read": len(part.documents)}
    record |= {"kept": len(kept), "sources": dict(Counter(document.source for document in part.documents))}
    record |= {"crc32": {f"{part.name}.{name}": crc32_of_file(folder / f"{part.name}.{name}") for name in files}}
    write_atomic(folder / f"{part.name}.json", json.dumps(record))
    return record


def _bands(step: Duplicates, signature_DF: np.ndarray) -> np.ndarray:
    bands = np.empty(len(signature_DF) * step.bands, BAND)
    bands["key"] = step.band_keys(signature_DF).reshape(-1)
    bands["document"] = np.repeat(np.arange(len(signature_DF)), step.bands)
    return bands[np.lexsort((bands["document"], bands["key"]))]


def read_lines_of(file: Path | str) -> list:
    """The objects of a file of JSON lines, plain or compressed; of none, nothing."""
    if not Path(file).exists():
        return []
    opener: Any = gzip.open if str(file).endswith(".gz") else open
    with opener(file, "rt", encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def hex_id(identity: bytes) -> str:
    """An id of a table, whose last zero bytes NumPy drops."""
    return identity.ljust(16, b"\0").hex()


def pack_lines(lines: list) -> bytes:
    """JSON lines, compressed to the same bytes every time."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return gzip.compress(text.encode("utf-8", "surrogatepass"), 1, mtime=0)


def npy_bytes(table: np.ndarray) -> bytes:
    """The content of a file of NumPy."""
    content = io.BytesIO()
    np.save(content, table)
    return content.getvalue()
