"""Frame-semantic parsing of 500 English sentences of ten articles: which words evoke which frames (Fillmore 1982).

A trigger is one word. Sentences of one article share words and frames, so the split is by article: seven to train with,
one to choose with and two to test with, in five rotations. A system that writes text answers a prompt with one JSON
list of pairs [frame, word] in the order of the words; `answer_schema` admits nothing else.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm import SplitName
from jaxlm.data.chat.records import iter_records
from jaxlm.data.files import ReadStats

FIRST, SECOND = "frames_other/en_out_gavin.jsonl.gz", "frames_other/en_out_sarah.jsonl.gz"
"""The sentences of the first annotator, and 400 of them by a second one."""

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
    def pairs(self) -> list[tuple[str, str]]:
        """(frame, trigger), in the order of the words."""
        return [(frame, self.words[place]) for place, frame in self.frames]


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


def frequent_frames(sentences: Iterable[Sentence], at_least: int = 10) -> list[str]:
    """The frames that occur `at_least` times, the most frequent first."""
    counts = Counter(frame for sentence in sentences for _, frame in sentence.frames)
    return [frame for frame, count in counts.most_common() if count >= at_least]


@dataclass(frozen=True)
class Lexicon:
    """The commonest frame of each word, in lower case, that evokes one in at least half of its occurrences."""

    frame_of: dict[str, str]

    @classmethod
    def fit(cls, sentences: Iterable[Sentence]) -> "Lexicon":
        """Count the words and their frames."""
        words, frames = Counter[str](), dict[str, Counter[str]]()
        for sentence in sentences:
            words.update(word.lower() for word in sentence.words)
            for frame, word in sentence.pairs:
                frames.setdefault(word.lower(), Counter())[frame] += 1
        kept = {word: counts for word, counts in frames.items() if 2 * counts.total() >= words[word]}
        return cls({word: counts.most_common(1)[0][0] for word, counts in kept.items()})

    def predict(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """(frame, trigger) of the words of a sentence."""
        return [(self.frame_of[word.lower()], word) for word in words if word.lower() in self.frame_of]


def score_pairs(
    predicted: Sequence[Sequence[tuple[str, str]]], gold: Sequence[Sequence[tuple[str, str]]]
) -> dict[str, tuple[float, float, float]]:
    """Precision, recall and F1 over all sentences, of pairs, frames and triggers, as multisets of strings."""
    parts = {"pair": lambda pair: pair, "frame": lambda pair: pair[0], "trigger": lambda pair: pair[1]}
    scores = {}
    for name, part in parts.items():
        bags = [(Counter(map(part, ours)), Counter(map(part, theirs)))
                for ours, theirs in zip(predicted, gold, strict=True)]  # fmt: skip
        common = sum((ours & theirs).total() for ours, theirs in bags)
        precision, recall = (common / max(sum(bag[side].total() for bag in bags), 1) for side in (0, 1))
        scores[name] = precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)
    return scores


def score_second_annotator(first: Iterable[Sentence]) -> tuple[int, dict[str, tuple[float, float, float]]]:
    """The number of sentences that the second annotator has in common with the first, and the scores on them."""
    pairs = {sentence.name: sentence.pairs for sentence in first}
    common = [sentence for sentence in read_sentences(SECOND) if sentence.name in pairs]
    return len(common), score_pairs([sentence.pairs for sentence in common], [pairs[s.name] for s in common])


def answer_schema(frames: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of an answer: pairs of a frame of the list and a word of the sentence."""
    pair = [{"enum": list(frames)}, {"type": "string", "x-source-words": 1}]
    return {"type": "array", "items": {"type": "array", "prefixItems": pair, "items": False, "minItems": 2}}


def write_answer(pairs: Iterable[tuple[str, str]]) -> str:
    """One JSON list of pairs."""
    return json.dumps([list(pair) for pair in pairs], ensure_ascii=False)


def read_answer(text: str) -> list[tuple[str, str]] | None:
    """The pairs of an answer, or None if it is not such a list."""
    try:
        return [(frame, trigger) for frame, trigger in json.loads(text) if isinstance(frame, str) and trigger + ""]
    except (ValueError, TypeError):
        return None


SENTENCE = "Sentence: "


def make_prompt(
    sentence: Sentence, frames: Sequence[str], shots: Sequence[Sentence], triggers: Sequence[Sentence]
) -> str:
    """The guideline, the frames with the words that evoke them most often in `triggers`, shots, and the sentence."""
    words: dict[str, Counter[str]] = {frame: Counter() for frame in frames}
    for frame, word in (pair for other in triggers for pair in other.pairs if pair[0] in words):
        words[frame][word] += 1
    listed = [f"- {frame}: {', '.join(word for word, _ in counts.most_common(3))}" for frame, counts in words.items()]
    rules = (
        "Find each word of a sentence that brings one of these situations to mind, and name the situation. Use only "
        'the sentence. Write one JSON list [["NAME", "word"], ...] in the order of the words, or [] if there is none.'
    )
    solved = [f"{SENTENCE}{shot.text}\n{write_answer(p for p in shot.pairs if p[0] in words)}" for shot in shots]
    return "\n".join([rules, *listed, *solved, f"{SENTENCE}{sentence.text}", ""])


def prompt_sentence(prompt: str) -> str:
    """The sentence that a prompt of `make_prompt` asks about."""
    return prompt.rpartition(SENTENCE)[2].rstrip("\n")
