"""Moses normalisation and tokenisation (sacremoses), as many published translation scores use it.

The order is that of Multi30k's own `lc.norm.tok` files: lower case, punctuation normalised, then tokenised with the
Moses escapes (`&quot;`, `&apos;`). Lines are stripped and runs of spaces collapse, so this cannot be undone exactly.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.data.files import ReadStats
from jaxlm.data.sources.base import Pair, Pairs, PairSource, iter_pairs
from jaxlm.errors import UserError

PREPROCESS_CACHE_SIZE = (
    1 << 17
)  # Multi30k's 58,000 lines take 5 s, and a vocabulary and an encoding pass both read them


def moses_normalize(lines: Sequence[str], lang: str) -> list[str]:
    """Punctuation in its plain form: quotes, dashes, spaces before marks. `lang` is a code such as "en" or "de"."""
    normalise = _sacremoses_tool("MosesPunctNormalizer", lang).normalize
    return [normalise(line) for line in lines]


def moses_tokenize(lines: Sequence[str], lang: str) -> list[str]:
    """Tokens joined by single spaces, with the Moses escapes."""
    tokenise = _sacremoses_tool("MosesTokenizer", lang).tokenize
    return [tokenise(line, return_str=True) for line in lines]


def moses_detokenize(lines: Sequence[str], lang: str) -> list[str]:
    """Running text from lines of tokens, escapes undone."""
    detokenise = _sacremoses_tool("MosesDetokenizer", lang).detokenize
    return [detokenise(line.split()) for line in lines]


def moses_preprocess(lines: Sequence[str], lang: str, lowercase: bool = True) -> list[str]:
    """What `MosesPreprocess` does to one side: lower case, normalise, tokenise."""
    return [_preprocess_line(line, lang, lowercase) for line in lines]


@functools.lru_cache(maxsize=PREPROCESS_CACHE_SIZE)
def _preprocess_line(line: str, lang: str, lowercase: bool) -> str:
    (line,) = moses_normalize([line.lower() if lowercase else line], lang)
    return moses_tokenize([line], lang)[0]


@functools.cache
def _sacremoses_tool(name: str, lang: str) -> Any:
    try:
        import sacremoses
    except ImportError as error:
        raise UserError("Moses tokenisation needs sacremoses: pip install 'jaxlm[moses]'") from error
    return getattr(sacremoses, name)(lang=lang)


@dataclass(frozen=True)
class Lowercase(PairSource):
    """Both sides in lower case."""

    pairs: Pairs

    def describe(self) -> str:
        return f"{self.pairs.describe()}; lower case"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        return ((source.lower(), target.lower()) for source, target in iter_pairs(self.pairs, stats))


@dataclass(frozen=True)
class MosesPreprocess(PairSource):
    """Both sides lower-cased (if asked), punctuation-normalised and Moses-tokenised, by the languages' codes."""

    pairs: Pairs
    source_lang: str
    target_lang: str
    lowercase: bool = True

    def describe(self) -> str:
        case = "lower-cased " if self.lowercase else ""
        return f"{self.pairs.describe()}; {case}Moses tokens ({self.source_lang} -> {self.target_lang})"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        for source, target in iter_pairs(self.pairs, stats):
            (source,) = moses_preprocess([source], self.source_lang, self.lowercase)
            (target,) = moses_preprocess([target], self.target_lang, self.lowercase)
            yield source, target
