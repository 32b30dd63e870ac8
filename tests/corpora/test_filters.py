"""Both sides of every threshold of the filters, derived by hand."""

import pytest

from jaxlm.corpora.document import Document, Drop
from jaxlm.corpora.filters import C4, FineWeb, GopherQuality, GopherRepetition, Language

THE, WORD = "the be ", "word "


def reasons(step, text, **meta):
    return [drop.reason for drop in step.failures(Document("0", text, meta=meta))]


QUALITY = {
    "at least 50 words": ("words", THE + WORD * 48, THE + WORD * 47),
    "mean length at least 3": (
        "word length",
        "the be " + "ab " * 24 + "abcd " * 26,
        "the be " + "ab " * 25 + "abcd " * 25,
    ),
    "mean length at most 10": ("word length", THE + "a" * 10 + " b" * 10, THE + "a" * 1000 + " word" * 48),
    "one hash sign in ten words": ("hash signs", THE + WORD * 48 + "# " * 0 + "#" * 5, THE + WORD * 48 + "#" * 6),
    "one ellipsis in ten words": ("ellipses", THE + WORD * 43 + "x... " * 5, THE + WORD * 42 + "x… " * 3 + "x... " * 3),
    "bullets on 90 % of the lines": (
        "bullets",
        "the be\n" + "• word word word word word word\n" * 9,
        "• the be\n" + "- word word word word word word\n" * 9,
    ),
    "30 % of the lines cut": (
        "cut lines",
        "the be\n" * 7 + "word word word word word word word word word word word word word word...\n" * 3,
        "the be\n" * 6 + "word word word word word word word word word word word word word word…\n" * 4,
    ),
    "80 % of the words with letters": (
        "words with letters",
        THE + WORD * 38 + "1,000 " * 10,
        THE + WORD * 37 + "1,000 " * 11,
    ),
    "two stop words": ("stop words", THE + WORD * 48, "the the " + WORD * 48),
}


@pytest.mark.parametrize("name", QUALITY)
def test_gopher_quality(name: str):
    reason, good, bad = QUALITY[name]
    if name == "mean length at most 10":  # 50 words of 10.0 and of 10.02 characters on average
        good, bad = "the with" + " abcdefghij" * 47 + " " + "a" * 23, "the with" + " abcdefghij" * 47 + " " + "a" * 24
    assert reason not in reasons(GopherQuality(), good)
    assert reason in reasons(GopherQuality(), bad)


def test_gopher_quality_counts_100_000_words():
    assert "words" not in reasons(GopherQuality(), "the be " * 50_000)
    assert "words" in reasons(GopherQuality(), "the be " * 50_000 + "word")


def test_stop_words_are_those_of_the_language():
    text = "la casa de " + WORD * 50
    assert "stop words" in reasons(GopherQuality(), text)
    assert "stop words" not in reasons(GopherQuality(), text, language="es")
    assert "stop words" not in reasons(GopherQuality(), WORD * 50, language="xx")  # no list, no rule


def distinct(count, prefix="w"):
    """Words of five letters, all different."""
    return [
        f"{prefix}{'abcdefghij'[i // 100 % 10]}{'abcdefghij'[i // 10 % 10]}{'abcdefghij'[i % 10]}z"
        for i in range(count)
    ]


def lines_of(words, per_line):
    return "\n".join(" ".join(words[i : i + per_line]) for i in range(0, len(words), per_line))


def test_gopher_repeated_lines():
    lines = distinct(7)
    assert "repeated lines" not in reasons(GopherRepetition(), "\n".join([*lines, *lines[:3]]))  # 3 of 10
    assert "repeated lines" in reasons(GopherRepetition(), "\n".join([*lines[:6], *lines[:4]]))
    long, short = "x" * 20, [word[0] * 2 + word[1:] for word in distinct(10)]  # 6 characters each: 60 of 100
    reason = "characters of repeated lines"
    assert reason not in reasons(GopherRepetition(), "\n".join([*short, long, long]))  # 20 of 100
    assert reason in reasons(GopherRepetition(), "\n".join([*short, long + "x", long + "x"]))


def test_gopher_repeated_paragraphs():
    parts = [f"{word}\n{word}x" for word in distinct(7)]
    assert "repeated paragraphs" not in reasons(GopherRepetition(), "\n\n".join([*parts, *parts[:3]]))
    assert "repeated paragraphs" in reasons(GopherRepetition(), "\n\n \n".join([*parts[:6], *parts[:4]]))
    reason = "characters of repeated paragraphs"
    short = [word[0] * 2 + word[1:] for word in distinct(10)]
    assert reason not in reasons(GopherRepetition(), "\n\n".join([*short, "x" * 20, "x" * 20]))
    assert reason in reasons(GopherRepetition(), "\n\n".join([*short, "x" * 21, "x" * 21]))


@pytest.mark.parametrize("n, maximum", [(2, 0.2), (3, 0.18), (4, 0.16)])
def test_gopher_top_ngrams(n: int, maximum: float):
    """Two copies of an n-gram of 5n characters among words of 5 characters: 10n of all characters."""
    phrase, reason = distinct(n, "q"), f"top {n}-grams"
    total = round(2 * n / maximum)  # words at which the share is the maximum, or just below
    total += 2 * n / total > maximum
    rest = distinct(total - 2 * n)
    assert reason not in reasons(GopherRepetition(), " ".join([*phrase, *rest, *phrase]))
    assert reason in reasons(GopherRepetition(), " ".join([*phrase, *rest[1:], *phrase]))
    assert reason not in reasons(GopherRepetition(), " ".join([*phrase, *rest[1:]]))  # it must occur twice


@pytest.mark.parametrize("n, maximum", list(zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.1), strict=True)))
def test_gopher_repeated_ngrams(n: int, maximum: float):
    """A phrase of n + 2 words said twice: its second copy counts once, though three n-grams cover it."""
    phrase, reason = distinct(n + 2, "q"), f"repeated {n}-grams"
    total = round((n + 2) / maximum)
    total += (n + 2) / total > maximum
    rest = distinct(total - 2 * (n + 2))
    assert reason not in reasons(GopherRepetition(), " ".join([*phrase, *rest, *phrase]))
    assert reason in reasons(GopherRepetition(), " ".join([*phrase, *rest[1:], *phrase]))
    assert f"repeated {n}-grams" not in reasons(
        GopherRepetition(), " ".join([*phrase[: n - 1], *rest[1:], *phrase[: n - 1]])
    )


SENTENCES = "One two three four five.\nOne two three four six!\nOne two three four seven?"


def kept(step, text):
    result = step.apply(Document("0", text))
    return result.text if isinstance(result, Document) else result.reason


def test_c4_cuts_lines():
    assert kept(C4(), SENTENCES) == SENTENCES
    cut = [
        "no end of a sentence here",
        "the end is not yet...",
        "only four words here.",
        "turn on your Javascript now, please.",
        "we have a Privacy Policy that you may read.",
        "one two three four " + "a" * 1001 + ".",
    ]
    for line in cut:
        assert kept(C4(), f"{SENTENCES}\n{line}") == SENTENCES
    stays = [
        "one two three four " + "a" * 999 + ".",
        'he wrote that "this is it."',
        "privacy is good, policy is better.",
    ]
    for line in stays:
        assert kept(C4(), f"{SENTENCES}\n{line}").endswith(line)
    assert kept(C4(), SENTENCES + "\nA fact [12] with its [edit] mark stays.").endswith("A fact  with its  mark stays.")
    assert kept(C4(line_ends=False), f"{SENTENCES}\nno end of a sentence here").endswith("here")
    assert kept(C4(words=3), f"{SENTENCES}\nonly three words.").endswith("words.")


def test_c4_drops_documents():
    two = "One two three four five. And one more, four."
    assert kept(C4(), two) == "sentences"
    assert kept(C4(), two + " A third.") == two + " A third."
    assert kept(C4(sentences=5), SENTENCES) == "sentences"
    assert kept(C4(), SENTENCES + "\nLorem Ipsum dolor sit amet et cetera.") == "lorem ipsum"
    assert kept(C4(), SENTENCES + "\nint main() { return 0; }") == "curly brackets"
    assert kept(C4(bad_words=("seven",)), SENTENCES) == "bad words"
    assert kept(C4(bad_words=("eve",)), SENTENCES) == SENTENCES


FINEWEB = {
    "12 % of the lines end in punctuation": (
        "line ends",
        "\n".join([*(f"{word} {'x' * 40}" for word in distinct(22)), *[f"{w} {'x' * 40}." for w in distinct(3, "p")]]),
        "\n".join([*(f"{word} {'x' * 40}" for word in distinct(23)), *[f"{w} {'x' * 40}." for w in distinct(2, "p")]]),
    ),
    "67 % of the lines short": (
        "short lines",
        "\n".join([*("x" * 29 + f"{i % 10}" for i in range(67)), *["x" * 31] * 33]),
        "\n".join([*("x" * 29 + f"{i % 10}" for i in range(68)), *["x" * 31] * 32]),
    ),
    "1 % of the characters repeated": (
        "characters of repeated lines",
        "\n".join(["a" * 980 + ".", "b" * 9 + ".", "b" * 9 + "."]),
        "\n".join(["a" * 970 + ".", "b" * 9 + ".", "b" * 9 + "."]),
    ),
    "0.3 newlines a word": ("newlines", "a b c d e f g\nh\ni\nj", "a b c d e f g\nh\ni\nj\n"),
}


@pytest.mark.parametrize("name", FINEWEB)
def test_fineweb(name: str):
    reason, good, bad = FINEWEB[name]
    assert reason not in reasons(FineWeb(), good)
    assert reason in reasons(FineWeb(), bad)


def test_fineweb_of_nothing():
    assert reasons(FineWeb(), " \n") == ["empty"]


def test_language():
    pytest.importorskip("py3langid")
    english = Document("0", "The quick brown fox jumps over the lazy dog, and nobody knows why.")
    document = Language(("en", "es")).apply(english)
    assert isinstance(document, Document) and document.meta["language"] == "en"
    assert Language(("es",)).apply(english) == Drop("language", "en")
    assert Language().apply(Document("0", "too short")) == Drop("language", "und")
    _, probability = Language().identify(english.text)
    assert isinstance(Language(min_probability=probability).apply(english), Document)
    assert Language(min_probability=1.1).apply(english).reason == "language probability"
