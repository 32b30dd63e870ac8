"""Page 2: words that mean alike lie alike, because they occur alike."""

import numpy as np

from jaxlm import AdamW, Buckets, Experiment, FeedForwardLM, LanguageModeling, LinearDecay, MiniLangTexts, Words

from .course import COLORS, INK, Course, Finding, claim, plot

VOCAB = 141
GROUPS = {
    "person": "witch king queen doctor girl captain poet",
    "work": "film book letter poem song",
    "place": "castle city garden house",
    "thing": "key map hat sword",
    "opinion": "good wonderful bad terrible",
    "color": "green red blue French",
    "number": "two three four many",
    "verb": "arrived fell came slept sang saw found bought wrote helped",
}


def english(split: str, count: int) -> MiniLangTexts:
    """Sentences of the English side of MiniLang."""
    return MiniLangTexts(split, count, english_only=True)


def language_model(model: object, steps: int, sentences: int = 10_000, vocab: int = VOCAB) -> Experiment:
    """A language model of single sentences, small enough for a laptop."""
    splits = english("train", sentences), english("valid", 100), english("test", 500)
    return Experiment(
        task=LanguageModeling(*splits, windows=None),
        tokenizer=Words(vocab),
        model=model,
        batching=Buckets(tokens=2048, max_shapes=1, max_length=24),
        optimizer=AdamW(LinearDecay(peak=3e-3, warmup=30), clip=1.0),
        steps=steps,
        best_metric="valid/nll",
    )


def feedforward() -> Experiment:
    """The model of Bengio et al. 2003: three words of context, vectors of width 24."""
    return language_model(FeedForwardLM(VOCAB, order=4, width=24, hidden=64, direct_connections=False), steps=400)


@claim(2, "Words that mean alike lie alike")
def words_alike(course: Course) -> Finding:
    """The nearest neighbor of a word is mostly of its own group, and cosines are larger inside the groups."""
    run = course.train(feedforward)
    names = [(word, group) for group, words in GROUPS.items() for word in words.split()]
    table = np.asarray(run.params["embedding"])
    x_ND = table[[int(ids[0]) for ids in run.tokenizer.encode([word for word, _ in names])]]
    x_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    cosine_NN = x_ND @ x_ND.T
    same_NN = np.array([[a == b for _, b in names] for _, a in names])
    other_NN = ~np.eye(len(names), dtype=bool)
    nearest_N = np.where(other_NN, cosine_NN, -2).argmax(1)
    numbers = {
        "neighbor of the same group (%)": 100 * float(same_NN[np.arange(len(names)), nearest_N].mean()),
        "by chance (%)": 100 * float(same_NN[other_NN].mean()),
        "cosine inside": float(cosine_NN[same_NN & other_NN].mean()),
        "cosine between": float(cosine_NN[~same_NN].mean()),
    }
    checks = {
        "half of the neighbors are of the group": numbers["neighbor of the same group (%)"] > 50,
        "cosines are larger inside": numbers["cosine inside"] > numbers["cosine between"] + 0.2,
    }
    return Finding(numbers, _map(names, x_ND), checks)


def _map(names: list[tuple[str, str]], x_ND: np.ndarray) -> object:
    """The two directions of the largest variance."""
    centered_ND = x_ND - x_ND.mean(0)
    _, _, axes_DD = np.linalg.svd(centered_ND, full_matrices=False)
    axes_DD = axes_DD[:2] * np.sign(axes_DD[:2].sum(1, keepdims=True))
    place_N2 = centered_ND @ axes_DD.T
    figure, axes = plot("The vectors of words, seen from their two widest directions", height=3.8)
    written: list[tuple[float, float]] = []  # words that would be written over others are left out
    for color, group in zip(COLORS, GROUPS, strict=True):
        rows = [i for i, (_, other) in enumerate(names) if other == group]
        axes.scatter(place_N2[rows, 0], place_N2[rows, 1], color=color, s=14, label=group)
        for i in rows:
            if all(abs(place_N2[i, 0] - x) > 0.15 or abs(place_N2[i, 1] - y) > 0.05 for x, y in written):
                written.append(tuple(place_N2[i]))
                axes.annotate(
                    names[i][0], place_N2[i], color=INK, fontsize=7, xytext=(3, 2), textcoords="offset points"
                )
    axes.margins(0.08)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower center", bbox_to_anchor=(0.62, 0.0))
    return figure
