"""A corpus for pre-training as one frozen object: its sources, the steps that clean it, and the rights to it."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from jaxlm.config.serialization import check_config, to_json
from jaxlm.corpora.croissant import croissant_terms
from jaxlm.corpora.document import Document
from jaxlm.corpora.duplicates import Duplicates
from jaxlm.corpora.opt_out import OptOut
from jaxlm.data.files import MAX_TEXT_BYTES, OnBadLine, ReadStats, find_file, iter_lines
from jaxlm.data.sources.text import Documents, DocumentUnit
from jaxlm.errors import UserError
from jaxlm.json_files import parse_json

LINE_END, CONTROL = re.compile("\r\n?|[\x85\u2028\u2029]"), re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
UNKNOWN_LICENSE = "NOASSERTION"
META_FIELDS = ("url", "date", "license")
Known = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Terms:
    """The rights to a source, its entry in the manifest.

    Attributes:
      license: an SPDX expression, `LicenseRef-...` or NOASSERTION; a record's own license has precedence.
      stated_by: who says so. The licenses that aggregators state are often wrong (Longpre et al. 2023).
      consent: on which the use rests.
      robots: when robots.txt was checked, for which user agents, and what it allows.
      retrieved: ISO date.
    """

    license: str = UNKNOWN_LICENSE
    license_url: str = ""
    stated_by: Literal["publisher", "aggregator", "annotator", "unknown"] = "unknown"
    attribution: str = ""
    redistribution: Known = "unknown"
    commercial: Known = "unknown"
    consent: Literal["license", "public domain", "contract", "explicit", "research exception", "unknown"] = "unknown"
    robots: str = ""
    url: str = ""
    retrieved: str = ""
    languages: tuple[str, ...] = ()
    time_span: str = ""
    made_by_model: str = ""
    personal_data: Known = "unknown"
    contact: str = ""

    @classmethod
    def from_croissant(cls, path: str, **others: Any) -> Self:
        """The terms that a Croissant file states, and others. Raises UserError if it is none."""
        return cls(**croissant_terms(path) | others)


def check_license(expression: str, place: str) -> None:
    """Raise UserError, which begins with the place, for what SPDX does not know, and without license-expression."""
    if expression == UNKNOWN_LICENSE or re.fullmatch(r"LicenseRef-[\w.-]+", expression):
        return
    try:
        from license_expression import get_spdx_licensing
    except ImportError:
        raise UserError("licenses need license-expression: pip install 'jaxlm[corpora]'") from None
    if errors := get_spdx_licensing().validate(expression).errors:
        raise UserError(
            f"{place}: license {expression!r:.80} is not an SPDX expression ({errors[0]}): expected one such as "
            "CC-BY-SA-4.0, LicenseRef-NAME or NOASSERTION"
        )


@dataclass(frozen=True)
class Licenses:
    """The licenses that a corpus may contain.

    Attributes:
      allow: SPDX identifiers; (): all. "A OR B" needs one of them, "A AND B" both.
      outside, unknown: documents of other licenses, and of none: refuse them by name, drop and count them, or keep
        them.
    """

    allow: tuple[str, ...] = ()
    outside: Literal["refuse", "drop"] = "refuse"
    unknown: Literal["refuse", "drop", "keep"] = "refuse"

    def decision(self, license: str) -> str:
        """ "keep", "drop" or "refuse"."""
        if license in ("", UNKNOWN_LICENSE):
            return self.unknown
        choices = [choice.split(" AND ") for choice in license.split(" OR ")]
        allowed = not self.allow or any(all(part.strip("() ") in self.allow for part in parts) for parts in choices)
        return "keep" if allowed else self.outside


@dataclass(frozen=True)
class CorpusSource:
    """Files of documents under one name and one set of terms.

    Attributes:
      unit, heading, field: as in `Documents`. Of a JSON record, texts under "url", "date" and "license" are kept.
      key: the JSON field by which a record is known to its owner, such as "url"; "": its file and ordinal.
      after, before: documents up to the one with the text `after`, and from the one with the text `before` on, are
        left out: the license around a book.
      longest: characters; a longer document is cut into several.
      priority: of two duplicates the one of the source with the lower number is kept.
    """

    name: str
    paths: tuple[str, ...]
    unit: DocumentUnit = "line"
    heading: str = ""
    field: str = "text"
    key: str = ""
    license: Terms = Terms()
    priority: int = 0
    language: str | None = None
    after: str = ""
    before: str = ""
    longest: int = 1 << 20
    on_bad_line: OnBadLine = "error"
    max_text_bytes: int = MAX_TEXT_BYTES

    def records(self, stats: ReadStats) -> Iterator[Document]:
        """The documents, normalized: NFC, LF as line ends, no control characters. Raises UserError for a bad file."""
        before = stats.kept
        for path in self.paths:
            started, name = not self.after, find_file(path).name
            for key, text, meta in self._json(path, stats) if self.unit == "json" else self._texts(path, stats):
                if not started or (self.before and self.before in text):
                    stop, started = started, started or self.after in text
                    if stop:
                        break
                    continue
                own = "\0".join((self.name, key or f"{name}\0{meta['place']}"))
                identity = hashlib.blake2b(own.encode(), digest_size=16)
                text = CONTROL.sub("", LINE_END.sub("\n", unicodedata.normalize("NFC", text)))
                document = Document(identity.hexdigest(), text, self.name, meta | {"language": self.language})
                stats.kept += 1
                yield replace(document, text=text[: self.longest])
                for piece in range(self.longest, len(text), self.longest):
                    stats.note("pieces of documents that were too long", 1)
                    identity.update(b"\0piece")
                    yield replace(document, id=identity.hexdigest(), text=text[piece : piece + self.longest])
        if stats.kept == before:
            raise UserError(f"the source {self.name} ({', '.join(self.paths)}) has no document: check files and keys")

    def _texts(self, path: str, stats: ReadStats) -> Iterator[tuple[str, str, dict]]:
        documents = Documents(
            (path,), self.unit, self.heading, on_bad_line=self.on_bad_line, max_text_bytes=self.max_text_bytes
        )
        for ordinal, text in enumerate(documents.read(ReadStats()), 1):
            yield "", text, {"place": f"document {ordinal}"}

    def _json(self, path: str, stats: ReadStats) -> Iterator[tuple[str, str, dict]]:
        for number, line in enumerate(iter_lines(path, self.on_bad_line, stats, self.max_text_bytes), 1):
            place, cure = f"{find_file(path)}, line {number}", "fix the line, or set on_bad_line='skip'"
            try:
                if line is None or not line.strip():
                    raise UserError(f"{place}: a blank line, expected a JSON object: {cure}")
                record = parse_json(line, place, dict, cure, max_bytes=self.max_text_bytes)
                key = str(_text_at(record, self.key, place, cure)) if self.key else ""
                meta = {name: record[name] for name in META_FIELDS if isinstance(record.get(name), str)}
                if self.key.endswith("url"):
                    meta.setdefault("url", key)
                check_license(meta.get("license", UNKNOWN_LICENSE), place)
                yield key, _text_at(record, self.field, place, cure), meta | {"place": f"line {number}"}
            except UserError:
                if line is not None and self.on_bad_line == "error":
                    raise
                stats.skipped += 1


def _text_at(record: Any, path: str, place: str, cure: str) -> Any:
    value = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, str) or (isinstance(value, int) and path != "text"):
        return value
    raise UserError(f"{place}: no text under {path!r} (it has {', '.join(map(repr, record))}): {cure}")


@dataclass(frozen=True)
class Corpus:
    """The recipe that `jaxlm prepare MODULE:NAME` follows.

    Attributes:
      steps: filters and `Personal`, in order, then at most one `Duplicates`, then at most one `Decontaminate`.
      markers: name of a group of words -> the words. The report shows how often each group's documents are dropped.
      seed: of the functions of MinHash.
    """

    sources: tuple[CorpusSource, ...]
    steps: tuple[Any, ...] = ()
    licenses: Licenses = Licenses(unknown="keep")
    opt_out: tuple[OptOut, ...] = ()
    markers: dict[str, tuple[str, ...]] | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for what can be known before the first document is read."""
        check_config(self, "corpus")
        names = [source.name for source in self.sources]
        paths = [str(find_file(path).resolve()) for source in self.sources for path in source.paths]
        for what, items in (("name of a source", names), ("file", paths)):
            if twice := sorted({item for item in items if items.count(item) > 1}):
                raise UserError(f"the {what} {twice[0]} is there twice: every document must have one source")
        for source in self.sources:
            check_license(source.license.license, f"source {source.name}")
            if self.licenses.decision(source.license.license) == "refuse" and source.unit != "json":
                raise UserError(
                    f"source {source.name} has the license {source.license.license}, which licenses={self.licenses} "
                    "refuses: allow it, or leave the source out"
                )
        places = [2 * hasattr(step, "sets") + isinstance(step, Duplicates) for step in self.steps]
        if places != sorted(places) or places.count(1) > 1 or places.count(2) > 1:
            raise UserError("steps: expected filters and Personal, then one Duplicates, then one Decontaminate at most")
        if wrong := [step for step in self.steps[: places.count(0)] if not hasattr(step, "apply")]:
            raise UserError(f"steps: {wrong[0]!r:.80} has no method apply(document)")

    @property
    def map_steps(self) -> tuple[Any, ...]:
        """The steps of each document by itself."""
        return tuple(step for step in self.steps if hasattr(step, "apply"))

    @property
    def duplicates(self) -> Duplicates | None:
        """The step of that name."""
        return next((step for step in self.steps if isinstance(step, Duplicates)), None)

    @property
    def map_digest(self) -> str:
        """Of everything that decides on the first pass."""
        duplicates = self.duplicates and replace(self.duplicates, verify=True)
        rest = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("sources", "steps")
        }
        lists = [[rule.path, rule.digest] for rule in self.opt_out]
        lists += [[source.name, source.license.license] for source in self.sources]
        config = [to_json(self.map_steps), to_json(duplicates), to_json(rest), lists]
        return hashlib.sha256(json.dumps(config).encode()).hexdigest()
