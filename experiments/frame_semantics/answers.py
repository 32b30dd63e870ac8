"""Frames as text: the prompt, and the answer, one JSON list of pairs [frame, word] in the order of the words."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from experiments.frame_semantics.sentences import Pair, Sentence, write_answer


def answer_schema(frames: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of an answer: pairs of a frame of the list and a word of the sentence."""
    pair = [{"enum": list(frames)}, {"type": "string", "x-source-words": 1}]
    return {"type": "array", "items": {"type": "array", "prefixItems": pair, "items": False, "minItems": 2}}


def read_answer(text: str) -> list[Pair] | None:
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
