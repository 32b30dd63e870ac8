"""Page 4: n-grams that were never seen, and the vectors that help."""

import numpy as np

from jaxlm import Experiment, FeedForwardLM, LanguageModeling, NGram, WittenBell, Words

from .course import COLORS, INK, Course, Finding, claim, legend, plot
from .vectors import VOCAB, english, language_model

SENTENCES = 1500
"""So few that most trigrams of the test sentences are new."""


def trigram() -> Experiment:
    """Counts of three words, smoothed (Witten and Bell 1991)."""
    splits = english("train", SENTENCES), english("valid", 300), english("test", 500)
    return Experiment(
        task=LanguageModeling(*splits, windows=None),
        tokenizer=Words(VOCAB),
        model=NGram(VOCAB, order=3, smoothing=WittenBell()),
        best_metric="valid/nll",
    )


def feedforward() -> Experiment:
    """The same two words of context, as vectors."""
    model = FeedForwardLM(VOCAB, order=3, width=24, hidden=64, direct_connections=False, dropout=0.1)
    return language_model(model, steps=300, sentences=SENTENCES)


@claim(4, "Vectors help with n-grams that were never seen")
def unseen_ngrams(course: Course) -> Finding:
    """-log p of the test words, apart for trigrams that the training text has and has not."""
    seen = {gram for text in english("train", SENTENCES) for gram in _trigrams(text)}
    texts = course.some(list(english("test", 500)), 500)
    new = np.array([gram not in seen for text in texts for gram in _trigrams(text)])
    numbers: dict[str, float] = {"unseen trigrams (%)": 100 * float(new.mean())}
    for name, make in {"trigram": trigram, "feed-forward": feedforward}.items():
        scores = course.train(make).score(texts)
        surprise = -np.array([value for score in scores for value in score.token_logprobs])
        numbers |= {
            f"{name}, seen (nats)": float(surprise[~new].mean()),
            f"{name}, unseen": float(surprise[new].mean()),
        }
    checks = {
        "unseen: the vectors save 0.3 nats": numbers["feed-forward, unseen"] < numbers["trigram, unseen"] - 0.3,
        "seen: the difference is smaller": numbers["trigram, unseen"] - numbers["feed-forward, unseen"]
        > numbers["trigram, seen (nats)"] - numbers["feed-forward, seen (nats)"] + 0.2,
    }
    return Finding(numbers, _figure(list(numbers.values())[1:]), checks)


def _trigrams(text: str) -> list[tuple[str, ...]]:
    words = ["<s>", "<s>", *text.split(), "</s>"]
    return list(zip(words, words[1:], words[2:], strict=False))


def _figure(values: list[float]) -> object:
    figure, axes = plot("Surprise at the next word after two words", y="−log p (nats)")
    for i, name in enumerate(("trigram counts", "feed-forward, vectors")):
        drawn = axes.bar([x + 0.36 * i for x in (0, 1)], values[2 * i : 2 * i + 2], 0.33, color=COLORS[i], label=name)
        axes.bar_label(drawn, fmt="%.2f", color=INK, fontsize=9, padding=2)
    axes.set_xticks([0.18, 1.18], ["trigram seen in training", "trigram never seen"])
    axes.margins(y=0.2)
    legend(axes)
    return figure
