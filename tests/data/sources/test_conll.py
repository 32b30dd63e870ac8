"""Readers of CoNLL-U and of column files: the words, the lines that are skipped, the messages."""

import gzip
from pathlib import Path

import pytest
from fixtures.rows import Rows

from jaxlm.data.files import ReadStats
from jaxlm.data.sources.classification import LabeledLines
from jaxlm.data.sources.conll import UPOS_TAGS, ColumnFile, ConllU, RepairTags, locate_word
from jaxlm.data.sources.parallel import JsonLines, ParallelFiles, Tsv
from jaxlm.data.sources.transforms import HashSplit
from jaxlm.errors import UserError
from jaxlm.metrics.classification import iob2_tags

CONLLU = """\
# sent_id = 1
# text = I don't see 10 000.
1\tI\tI\tPRON\tPRP\t_\t4\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\t_\t4\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t4\tadvmod\t_\t_
4\tsee\tsee\tVERB\tVB\t_\t0\troot\t_\t_
4.1\tghost\tghost\tNOUN\t_\t_\t_\t_\t_\t_
5\t10 000\t10000\tNUM\tCD\tNumType=Card\t4\tobj\t_\tSpaceAfter=No

# sent_id = 2
1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_"""

ENTITIES = (
    "0\tREDIRECCIÓN\tO\n1\tAlgarrobo\tB-LOC\n2\t(\tI-LOC\n\t\n\n0\t#hola\tO\n1\tJuan Carlos\tB-PER\n2\tI\tB-PER\n"
)


def written(tmp_path: Path, text: str, name: str = "file.conllu") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def test_words_of_conllu_are_the_syntactic_words(tmp_path):
    path = written(tmp_path, CONLLU)
    first = ("I do n't see 10_000", "PRON AUX PART VERB NUM")
    assert list(ConllU(path)) == [first, ("Yes", "INTJ")]
    assert list(ConllU(path, "XPOS"))[0][1] == "PRP VBP RB VB CD"
    assert list(ConllU(path, "FEATS"))[0][1] == "_ _ _ _ NumType=Card"
    assert {tag for _, tags in ConllU(path) for tag in tags.split()} <= set(UPOS_TAGS)
    assert ConllU(path).locate(1, 0) == f"{path}, line 12"
    assert ConllU(path).locate(0, 4) == f"{path}, line 9"


def test_windows_lines_and_gzip(tmp_path):
    packed = tmp_path / "file.conllu.gz"
    packed.write_bytes(gzip.compress(CONLLU.replace("\n", "\r\n").encode()))
    assert list(ConllU(str(packed))) == list(ConllU(written(tmp_path, CONLLU, "plain.conllu")))


@pytest.mark.parametrize(
    ("old", "new", "line", "found"),
    [
        ("4\tsee\tsee\tVERB", "4\tsee\tVERB", 7, "9 columns, expected the 10"),
        ("4\tsee", "four\tsee", 7, "'four'"),
        ("4\tsee", "1\tsee", 7, "the id is 1, expected 4: ids count the words of a sentence from 1, and a blank line"),
        ("4\tsee", "4" * 5000 + "\tsee", 7, "expected 4"),
        ("# sent_id = 1\n# text = I don't see 10 000.\n1\tI", "\n\n2\tI", 3, "the id is 2, expected 1"),
        ("4\tsee\tsee\tVERB", "4\tsee\tsee\t_", 7, "'see', has no UPOS"),
        ("4\tsee\tsee", "4\t\tsee", 7, "word 4 has no form"),
    ],
)
def test_a_bad_line_of_conllu_is_named_or_its_sentence_left_out(tmp_path, old, new, line, found):
    path = written(tmp_path, CONLLU.replace(old, new))
    with pytest.raises(UserError, match=rf"line {line}: .*") as error:
        list(ConllU(path))
    assert found in str(error.value) and path in str(error.value)
    bad = ReadStats()
    assert list(ConllU(path, on_bad_line="skip").read(bad)) == [("Yes", "INTJ")]
    assert (bad.kept, bad.skipped) == (1, 1)
    assert ConllU(path, on_bad_line="skip").locate(0, 0) == f"{path}, line 12"


def test_a_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin"
    path.write_bytes(CONLLU.replace("4\tsee", "4\tsé").encode("latin1"))
    with pytest.raises(UserError, match="line 7.*not UTF-8"):
        list(ConllU(str(path)))
    assert list(ConllU(str(path), on_bad_line="skip")) == [("Yes", "INTJ")]
    assert list(ConllU(str(path), on_bad_line="replace"))[0][0] == "I do n't s\ufffd 10_000"


def test_an_unknown_column_is_refused():
    with pytest.raises(UserError, match="'POS'.*UPOS"):
        ConllU("x", "POS")


def test_columns_with_a_number_in_front_and_blank_lines_of_tabs(tmp_path):
    path = written(tmp_path, ENTITIES)
    pairs = [("REDIRECCIÓN Algarrobo (", "O B-LOC I-LOC"), ("#hola Juan_Carlos I", "O B-PER B-PER")]
    assert list(ColumnFile(path, word_column=1)) == pairs
    assert list(ColumnFile(path, word_column=1, tag_column=2)) == pairs
    assert locate_word(ColumnFile(path, word_column=1), 1, 2) == f"{path}, line 8"


def test_the_columns_of_conll_2003(tmp_path):
    path = written(tmp_path, "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n")
    assert list(ColumnFile(path, separator=None)) == [("EU rejects", "B-ORG O")]
    assert list(ColumnFile(path, separator=None, tag_column=1)) == [("EU rejects", "NNP VBZ")]


def test_columns_between_spaces_keep_the_other_white_space(tmp_path):
    """A number with a no-break space inside is one word."""
    path = written(tmp_path, " 10\u00a0000 CD  O\t\neuros NNS O\n")
    assert list(ColumnFile(path, separator=None, tag_column=1)) == [("10_000 euros", "CD NNS")]


def test_comments_only_where_they_are_asked_for(tmp_path):
    path = written(tmp_path, "# id 1\tx\nhola\tO\n")
    assert list(ColumnFile(path)) == [("#_id_1 hola", "x O")]
    assert list(ColumnFile(path, comment_prefix="# id")) == [("hola", "O")]


@pytest.mark.parametrize("line", ["Juan", "Juan ", "\tO", "Juan\t"])
def test_a_line_without_word_or_tag(tmp_path, line):
    path = written(tmp_path, f"a\tO\n{line}\n\nb\tO\n")
    with pytest.raises(UserError, match="line 2: .*(1 columns|the (word|tag) is missing)"):
        list(ColumnFile(path))
    assert list(ColumnFile(path, on_bad_line="skip")) == [("b", "O")]


@pytest.mark.parametrize(("tags", "line", "repaired"), [
    ("I-PER I-PER", 1, "B-PER I-PER"),
    ("B-LOC I-PER", 2, "B-LOC B-PER"),
    ("B-LOC I-LOC O I-LOC I-LOC", 4, "B-LOC I-LOC O B-LOC I-LOC"),
])  # fmt: skip
def test_an_inside_without_its_beginning_is_named_or_repaired(tmp_path, tags, line, repaired):
    path = written(tmp_path, "".join(f"w{tag}\t{tag}\n" for tag in tags.split()))
    with pytest.raises(UserError, match=rf"line {line}: 'w.*on_bad_tag='repair'"):
        list(ColumnFile(path))
    assert list(ColumnFile(path, on_bad_tag="repair"))[0][1] == repaired


def test_a_span_does_not_reach_over_a_blank_line(tmp_path):
    path = written(tmp_path, "a\tB-PER\n\nb\tI-PER\n")
    with pytest.raises(UserError, match="line 3"):
        list(ColumnFile(path))


def test_a_file_of_comments_alone(tmp_path):
    with pytest.raises(UserError, match="no pair is left"):
        list(ConllU(written(tmp_path, "# nothing\n\n")))


def test_the_place_in_another_source():
    class Two:
        def describe(self):
            return "two"

    assert locate_word(Two(), 3, 1) == "two, sentence 4, word 2"


def test_sentences_without_a_blank_line_between_them_are_refused(tmp_path):
    with pytest.raises(UserError, match="line 11: the id is 1, expected 6"):
        list(ConllU(written(tmp_path, CONLLU.replace("\n\n", "\n"))))


def test_a_sentence_has_a_limit(tmp_path):
    for reader in (
        ConllU(written(tmp_path, CONLLU), max_text_bytes=120),
        ColumnFile(written(tmp_path, "a\tO\n" * 99, "words"), max_text_bytes=99),
    ):
        with pytest.raises(UserError, match=r"line \d+: the sentence has more than \d+ bytes, the limit"):
            list(reader)


def test_tags_of_any_source_can_be_repaired(tmp_path):
    rows = Rows((("a b c d", "I-X I-X B-Y I-X"), ("e", "O")))
    assert list(RepairTags(rows)) == [("a b c d", "B-X I-X B-Y B-X"), ("e", "O")]
    many = Rows((("w " * 50_000, "I-X I-Y " * 25_000),))  # in time that grows with the tags, not with their square
    assert list(RepairTags(many))[0][1].split() == ["B-X", "B-Y"] * 25_000
    assert "IOB2 repaired" in RepairTags(rows).describe()


def test_the_place_of_a_word_in_files_of_lines(tmp_path):
    """Pairs that are left out count as lines."""
    words, tags = written(tmp_path, "a\n\nb\nc d\n", "w"), written(tmp_path, "O\n\nO\nO O\n", "t")
    assert locate_word(ParallelFiles(words, tags), 2, 1) == f"{tags}, line 4, word 2"
    table = written(tmp_path, "w\tt\na\tO\n\nc d\tO O\n", "tsv")
    assert locate_word(Tsv(table, "w", "t"), 1, 0) == f"{table}, line 4, word 1"
    assert locate_word(Tsv(table, 0, 1), 1, 0) == f"{table}, line 2, word 1"
    lines = written(tmp_path, '{"w": "a", "t": "O"}\n\n{"w": "b", "t": "O"}\n', "jsonl")
    assert locate_word(JsonLines(lines, "w", "t"), 1, 0) == f"{lines}, line 3, word 1"
    labels = written(tmp_path, "O a\nO b\n", "lines")
    assert locate_word(LabeledLines(labels), 1, 0) == f"{labels}, line 2, word 1"


@pytest.mark.data
def test_the_real_files_are_read_whole(data_root, monkeypatch):
    """The numbers of sentences and words that the files hold, counted with other tools."""
    monkeypatch.setenv("JAXLM_DATA", str(data_root))
    dev = list(ConllU("ud_spanish_gsd_dev/es_gsd-ud-dev.conllu"))
    assert len(dev) == 1400 and {tag for _, tags in dev for tag in tags.split()} <= set(UPOS_TAGS)
    assert all(len(words.split()) == len(tags.split()) for words, tags in dev)
    parts = [list(HashSplit(ConllU("ud_spanish_gsd_dev/es_gsd-ud-dev.conllu"), part, 0.1, 0.1))
             for part in ("train", "valid", "test")]  # fmt: skip
    assert sorted(sum(parts, [])) == sorted(dev)
    emerging = list(ColumnFile("wnut17/emerging.dev.conll"))
    tags = [tag for _, row in emerging for tag in row.split()]
    assert (len(emerging), len(tags), tags.count("B-person")) == (1009, 15733, 470)
    assert set(tags) == set(iob2_tags("corporation", "creative-work", "group", "location", "person", "product"))
    assert len(list(ColumnFile("wnut17/wnut17train.conll"))) == 3394
    val = [tag for _, row in ColumnFile("wikiann_spa/val.conllu", word_column=1) for tag in row.split()]
    assert (len(val), val.count("I-ORG")) == (64329, 11533)
