"""Sources of texts with a class, and of the tags and opinions of the built-in corpus."""

import pytest

from jaxlm.data.files import ReadStats
from jaxlm.data.minilang.corpus import EXAMPLE_SENTENCES, assign_split
from jaxlm.data.minilang.sources import MiniLangMinimalPairs, MiniLangSentiment, MiniLangTags
from jaxlm.data.sources.classification import SENTIMENT_LABELS, LabeledLines, MapLabels
from jaxlm.data.sources.parallel import ParallelFiles
from jaxlm.errors import UserError

MINUS, PLUS = "Juan vio la película que no me gustó", "Juan no vio la película que me gustó"


def test_the_class_comes_first(tmp_path):
    path = tmp_path / "sst.txt"
    path.write_text("1 a stirring , funny film\n0 dull .", encoding="utf-8")
    assert list(LabeledLines(str(path))) == [("a stirring , funny film", "1"), ("dull .", "0")]
    path.write_text("1\ta b\n1 c\n\n0\td", encoding="utf-8")
    with pytest.raises(UserError, match="line 2: '1 c'"):
        list(LabeledLines(str(path), separator="\t"))
    bad = ReadStats()
    assert list(LabeledLines(str(path), "\t", on_bad_line="skip").read(bad)) == [("a b", "1"), ("d", "0")]
    assert (bad.kept, bad.skipped, bad.blank) == (2, 1, 1)


def test_texts_and_classes_in_two_files(tmp_path):
    """Neither ends its last line; one line too few in either is named with both numbers."""
    text, label = tmp_path / "text", tmp_path / "label"
    text.write_text("bien\nmal\nasí así", encoding="utf-8")
    label.write_text("2\n0\n1", encoding="utf-8")
    files = ParallelFiles(str(text), str(label))
    source = MapLabels(files, ("0", "1", "2"), SENTIMENT_LABELS)
    assert list(source) == list(source) == [("bien", "P"), ("mal", "N"), ("así así", "NEU")]
    assert "N, NEU, P" in source.describe()
    with pytest.raises(UserError, match="text 2 has the class '0', expected one of 1, 2"):
        list(MapLabels(files, ("1", "2"), ("a", "b")))
    label.write_text("2\n0", encoding="utf-8")
    with pytest.raises(UserError, match="has 3 lines and .* has 2"):
        list(source)


def test_codes_and_names_belong_together():
    files = ParallelFiles("a", "b")
    for codes, names in ((("0", "1"), ("a",)), (("0", "0"), ("a", "b"))):
        with pytest.raises(UserError, match="a new one for each"):
            MapLabels(files, codes, names)


def test_opinions_and_tags_of_the_built_in_corpus():
    opinions = list(MiniLangSentiment("valid", 60))
    assert {name for _, name in opinions} == set(SENTIMENT_LABELS)
    tagged = list(MiniLangTags("valid", 60))
    assert [text for text, _ in tagged] == [text for text, _ in opinions]
    assert all(len(text.split()) == len(tags.split()) for text, tags in tagged)
    english = dict(MiniLangTags("test", 3, language="en"))
    assert english[EXAMPLE_SENTENCES[0]] == "DET ADJ NOUN VERB"
    with pytest.raises(UserError, match="'en' and 'es'"):
        MiniLangTags("test", 3, language="fr").describe()


def test_twins_have_the_same_words_and_another_opinion():
    pairs = list(MiniLangMinimalPairs("test", 200))
    assert pairs[:2] == [(PLUS, "P"), (MINUS, "N")] and len(pairs) == 200
    for (praise, good), (blame, evil) in zip(pairs[::2], pairs[1::2], strict=True):
        assert (good, evil) == ("P", "N") and praise != blame
        assert sorted(praise.split()) == sorted(blame.split())


def test_no_bag_of_words_is_in_two_splits():
    """Also the English ones: their bag decides the split, so a test pair's words were never seen together."""
    bags = {}
    for split in ("train", "valid", "test"):
        pairs = MiniLangMinimalPairs(split, 20, language="en")
        bags[split] = {tuple(sorted(text.split())) for text, _ in pairs}
        assert all(assign_split(text) == split for text, _ in pairs)
        spanish = MiniLangMinimalPairs(split, 400)
        bags[split] |= {tuple(sorted(text.split())) for text, _ in spanish}
    assert not bags["train"] & bags["valid"] and not (bags["train"] | bags["valid"]) & bags["test"]


@pytest.mark.data
def test_the_real_files(data_root, monkeypatch):
    monkeypatch.setenv("JAXLM_DATA", str(data_root))
    text = "umsab_spanish/spanish.{}_text.txt", "umsab_spanish/spanish.{}_labels.txt"
    for split, count in (("train", 1839), ("val", 324)):
        pairs = list(ParallelFiles(*(name.format(split) for name in text)))
        assert len(pairs) == count and [sum(c == code for _, c in pairs) for code in "012"] == [count // 3] * 3
    assert [sum(1 for _ in LabeledLines(f"sst/stsa.{kind}.dev")) for kind in ("binary", "fine")] == [872, 1101]
