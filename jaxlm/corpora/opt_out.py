"""Lists of documents that must not be in a corpus: domains, addresses, ids, digests and texts."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

import numpy as np

from jaxlm.corpora.document import Document
from jaxlm.corpora.duplicates import Duplicates
from jaxlm.data.files import ReadStats, find_file, read_lines
from jaxlm.errors import UserError

ENTRY = re.compile(r"(https?://\S+)|([0-9a-f]{32})|digest:([0-9a-f]{32})|text:(.*\S.*)|((?:[\w-]+\.)+[^\W\d_][\w-]+)")


@dataclass(frozen=True)
class OptOut:
    """A file with an entry a line; blank lines and those that begin with `#` do not count.

    An entry is a domain (with its subdomains), the beginning of an address (https://...), the id of a document,
    `digest:` and the digest of its normal form, or `text:` and the text itself, which also finds near duplicates.
    """

    path: str
    date: str = ""

    @property
    def digest(self) -> str:
        """Of the file."""
        return hashlib.sha256(find_file(self.path).read_bytes()).hexdigest()


class OptOutRules:
    """The entries of several lists. Raises UserError for a line that is none, with its file and number."""

    def __init__(self, lists: Sequence[OptOut], seed: int = 0, ids: Sequence[str] = ()):
        entries: list[set[str]] = [set(), set(ids), set(), set(), set()]
        self._near, self._seed = Duplicates(), seed
        for part in lists:
            for number, line in enumerate(read_lines(part.path, "error", ReadStats()), 1):
                if not line.strip() or line.startswith("#"):
                    continue
                if (match := ENTRY.fullmatch(line.strip())) is None or match.lastindex is None:
                    raise UserError(
                        f"{find_file(part.path)}, line {number}: {line!r:.80} is not an entry of an opt-out list: "
                        "expected a domain, an address (https://...), an id of 32 digits, digest:X "
                        "or text:TEXT; a header line begins with #"
                    )
                entries[match.lastindex - 1].add(match[match.lastindex])
        self._prefixes, self.ids, self._digests, self._texts, self._domains = tuple(entries[0]), *entries[1:]
        self._digests |= {Document("", text).digest.hex() for text in self._texts}

    @cached_property
    def _signatures(self) -> np.ndarray:
        texts = sorted(self._texts)
        return np.stack([self._near.signature(Document("", text), self._seed) for text in texts])

    def reason(self, document: Document, near: bool = True) -> str:
        """The kind of the entry that a document matches; "" if there is none."""
        url = document.meta.get("url", "")
        labels = (urlsplit(url).hostname or "").split(".") if url and self._domains else []
        if document.id in self.ids:
            return "id"
        if url and url.startswith(self._prefixes or ("\0",)):
            return "address"
        if not self._domains.isdisjoint(".".join(labels[i:]) for i in range(len(labels))):
            return "domain"
        if self._digests and document.digest.hex() in self._digests:
            return "digest"
        if near and self._texts:
            agree = (self._signatures == self._near.signature(document, self._seed)).mean(1).max()
            return "near duplicate" if agree >= self._near.threshold - 0.05 else ""
        return ""
