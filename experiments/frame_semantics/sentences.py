"""Frame-semantic parsing of 500 English sentences of ten articles: which words evoke which frames (Fillmore 1982).

Sentences of one article share words and frames, so the split is by article: seven to train with, one to choose with and
two to test with, in five rotations.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from experiments.frame_semantics.names import FRAMES, FrameSet
from jaxlm import PairSource, SplitName, UserError
from jaxlm.data.chat.dialogue import Dialogue, Turn
from jaxlm.data.chat.records import iter_records
from jaxlm.data.files import ReadStats
from jaxlm.data.sources.base import Source

FIRST, SECOND = "frames_other/en_out_gavin.jsonl.gz", "frames_other/en_out_sarah.jsonl.gz"
"""The sentences of the first annotator, and 400 of them by a second one."""

Pair = tuple[str, str]
"""(frame, trigger): a trigger is one word."""

NO_FRAME = "O"

ROTATIONS = 5


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence of an article and, by place, its frames."""

    name: str
    words: tuple[str, ...]
    frames: tuple[tuple[int, str], ...]

    @property
    def article(self) -> str:
        return self.name.rstrip("0123456789")

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def pairs(self) -> list[Pair]:
        """In the order of the words."""
        return [(frame, self.words[place]) for place, frame in self.frames]

    @property
    def tags(self) -> list[str]:
        """The frame of each word, or `NO_FRAME`."""
        frame_of = dict(self.frames)
        return [frame_of.get(place, NO_FRAME) for place in range(len(self.words))]


def read_sentences(path: str = FIRST) -> list[Sentence]:
    """The sentences of a file of JSON lines: {"id", "tokens", "frames": [{"trigger": place, "frame": name}]}."""
    return [
        Sentence(row["id"], tuple(row["tokens"]), tuple(sorted((f["trigger"], f["frame"]) for f in row["frames"])))
        for _, row in iter_records(path, "error", ReadStats())
    ]


def split_by_article(sentences: Iterable[Sentence], rotation: int) -> dict[SplitName, list[Sentence]]:
    """Two articles to test with, the next one to choose with, the others to train with."""
    sentences = list(sentences)
    articles = list(dict.fromkeys(sentence.article for sentence in sentences))
    test = {articles[(2 * rotation + step) % len(articles)] for step in (0, 1)}
    valid = articles[(2 * rotation + 2) % len(articles)]
    parts: dict[SplitName, list[Sentence]] = {"train": [], "valid": [], "test": []}
    for sentence in sentences:
        name: SplitName = "test" if sentence.article in test else "valid" if sentence.article == valid else "train"
        parts[name].append(sentence)
    return parts


@dataclass(frozen=True)
class FrameSentences:
    """The sentences of one part of a rotation, with the frames of a set.

    Attributes:
      rotation: one of five choices of two articles to test with and one to validate with.
      frames: the set of frames; the others are left out of the sentences.
    """

    split: SplitName = "train"
    rotation: int = 0
    frames: FrameSet = "all"
    path: str = FIRST

    def __post_init__(self) -> None:
        if not 0 <= self.rotation < ROTATIONS:
            raise UserError(f"rotation {self.rotation}: expected 0 to {ROTATIONS - 1}")

    def sentences(self) -> list[Sentence]:
        """The sentences, in the order of the file."""
        kept = set(FRAMES[self.frames])
        return [
            replace(sentence, frames=tuple(pair for pair in sentence.frames if pair[1] in kept))
            for sentence in split_by_article(read_sentences(self.path), self.rotation)[self.split]
        ]

    def describe(self) -> str:
        """One line."""
        return f"{self.path}, {self.split}, rotation {self.rotation}, {self.frames} frames"


@dataclass(frozen=True)
class TaggedFrames(FrameSentences, PairSource):
    """Pairs (words, tags): the frame of each word, or `NO_FRAME`."""

    def read(self, stats: ReadStats) -> Iterator[tuple[str, str]]:
        for sentence in self.sentences():
            stats.kept += 1
            yield sentence.text, " ".join(sentence.tags)


@dataclass(frozen=True)
class FrameDialogues(FrameSentences, Source[Dialogue]):
    """Dialogues: the user's turn is a sentence, the answer a JSON list of pairs [frame, word]."""

    def read(self, stats: ReadStats) -> Iterator[Dialogue]:
        for sentence in self.sentences():
            stats.kept += 1
            yield Dialogue((Turn("user", sentence.text),)).with_answer(write_answer(sentence.pairs))


def write_answer(pairs: Iterable[Pair]) -> str:
    """One JSON list of pairs."""
    return json.dumps([list(pair) for pair in pairs], ensure_ascii=False)
