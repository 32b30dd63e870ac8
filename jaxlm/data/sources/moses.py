"""Moses normalization and tokenization (sacremoses), which many published translation scores use.

The order is that of the `lc.norm.tok` files of Multi30k: lower case, normalized punctuation, then tokens with the Moses
escapes (`&quot;`, `&apos;`). Lines are stripped and runs of spaces collapse, so detokenization is not exact.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.data.files import ReadStats
from jaxlm.data.sources.base import Pair, Pairs, PairSource, iter_pairs
from jaxlm.errors import UserError

PREPROCESS_CACHE_SIZE = 1 << 17
"""Lines; the 58,000 of Multi30k take 5 s, and the tokenizer's training and the encoding both read them."""


def moses_normalize(lines: Sequence[str], lang: str) -> list[str]:
    """Normalized punctuation: quotes, dashes, spaces before punctuation. `lang` is a code such as "en" or "de"."""
    normalize = _sacremoses_tool("MosesPunctNormalizer", lang).normalize
    return [normalize(line) for line in lines]


def moses_tokenize(lines: Sequence[str], lang: str) -> list[str]:
    """Tokens with single spaces between them, and the Moses escapes."""
    tokenize = _sacremoses_tool("MosesTokenizer", lang).tokenize
    return [tokenize(line, return_str=True) for line in lines]


def moses_detokenize(lines: Sequence[str], lang: str) -> list[str]:
    """Running text from lines of tokens, escapes undone."""
    detokenize = _sacremoses_tool("MosesDetokenizer", lang).detokenize
    return [detokenize(line.split()) for line in lines]


def moses_preprocess(lines: Sequence[str], lang: str, lowercase: bool = True) -> list[str]:
    """The lines of one side in lower case, normalized and tokenized."""
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
        raise UserError("Moses tokenization needs sacremoses: pip install 'jaxlm[moses]'") from error
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
    """Both sides in lower case (if `lowercase`), normalized and tokenized, by the codes of their languages."""

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
