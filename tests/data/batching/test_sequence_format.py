"""Input formats of one or several texts, the sources of their parts, and the correlations that score them."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from fixtures.zoo_labels import ZOO

from jaxlm.data.batching.sequence_format import SequenceFormat
from jaxlm.data.sources.classification import RteXml
from jaxlm.data.sources.parallel import JsonLines, Tsv
from jaxlm.data.tokenizers.base import BOS, EOS
from jaxlm.data.tokenizers.simple import Words
from jaxlm.errors import UserError
from jaxlm.metrics.classification import pearson, spearman

TOKENIZER = Words(20).fit(["a b c d e f"])
A, B, C = (int(ids[0]) for ids in TOKENIZER.encode(["a", "b", "c"]))


def rows(layout: SequenceFormat, *texts: str) -> list[list[int]]:
    return [row.tolist() for row in layout.encode_rows(TOKENIZER, texts)]


def test_forms():
    assert rows(SequenceFormat(), "a b", "a\tb c", "") == [[BOS, A, B], [BOS, A, EOS, B, C], [BOS]]
    assert rows(SequenceFormat(num_separators=2), "a\tb") == [[BOS, A, EOS, EOS, B]]
    assert rows(SequenceFormat("both_orders"), "a\tb c") == [[BOS, A, EOS, B, C, EOS, BOS, B, C, EOS, A]]
    assert rows(SequenceFormat("choices"), "a\tb\tc") == [[BOS, A, EOS, B, EOS, BOS, A, EOS, C]]
    for form, text in (("both_orders", "a"), ("both_orders", "a\tb\tc"), ("choices", "a\tb")):
        with pytest.raises(UserError, match="parts between TABs, expected"):
            rows(SequenceFormat(form), text)


@pytest.mark.parametrize("first", [0, 1, 5, 9, 30])
@pytest.mark.parametrize("second", [0, 4, 30])
def test_the_longest_part_is_cut(first, second):
    """A sequence fits; the longest part is cut at its end, which makes the parts as even as possible."""
    layout = SequenceFormat(max_length=12)
    (row,) = rows(layout, f"{'a ' * first}\t{'b ' * second}")
    assert len(row) + 1 == min(first + second + 3, 12)
    kept = row.count(A), row.count(B)
    assert kept == (first, second) or abs(kept[0] - kept[1]) <= 1 or min(kept) in (first, second)


def test_columns_by_name(tmp_path: Path):
    """A byte order mark, Windows line ends, names with spaces and signs: the format of MRPC; and that of SICK."""
    file = tmp_path / "pairs.tsv"
    file.write_bytes('\ufeffQuality\t#1 ID\t#1 String\t#2 String\r\n1\t7\tone "a"\ttwo\r\n0\t8\tx\ty\r\n'.encode())
    pairs = Tsv(str(file), ("#1 String", "#2 String"), "Quality")
    assert list(pairs) == [('one "a"\ttwo', "1"), ("x\ty", "0")] and list(pairs) == list(pairs)
    assert list(Tsv(str(file), "#1 String", "#1 ID"))[0] == ('one "a"', "7")
    assert list(Tsv(str(file), (2, 3), 0))[1] == ('one "a"\ttwo', "1"), "numbers know no first line"
    with pytest.raises(UserError, match="line 1 lacks the column 'quality', or has it twice: it names 'Quality', "):
        list(Tsv(str(file), "#1 String", "quality"))
    with pytest.raises(UserError, match="expected two different numbers from 0, or names"):
        Tsv(str(file), (0, 1), "Quality")


def test_json_of_two_texts(tmp_path: Path):
    file = tmp_path / "snli.jsonl"
    file.write_text('{"sentence1": "a\\tb", "sentence2": "c", "gold_label": "neutral"}\n')
    assert list(JsonLines(str(file), ("sentence1", "sentence2"), "gold_label")) == [("a b\tc", "neutral")]


def test_entailment_in_xml(tmp_path: Path):
    """Entities, inner markup, line ends of Windows, both names of the label; and files that are not entailment XML."""
    file = tmp_path / "rte.xml.gz"
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\r\n<!DOCTYPE c SYSTEM "rte.dtd">\r\n<c>\r\n'
        '<pair id="8" value="TRUE"><t>It&apos;s\r\n one</t><h>H</h></pair>'
        '<pair id="9" entailment="NO" task="IE"><t>a <e>b</e></t><h>c</h></pair></c>'
    )
    file.write_bytes(gzip.compress(text.encode()))
    assert list(RteXml(str(file))) == [("It's one\tH", "TRUE"), ("a b\tc", "NO")]
    with pytest.raises(UserError, match="pair 8 has no attribute label"):
        list(RteXml(str(file), label_attributes=("label",)))
    with pytest.raises(UserError, match="has not all of the elements t, x"):
        list(RteXml(str(file), text_elements=("t", "x")))
    file.write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(UserError, match="damaged gzip"):
        list(RteXml(str(file)))
    file = file.with_suffix("")
    file.write_text(text[:-20])
    with pytest.raises(UserError, match="cannot be read as XML"):
        list(RteXml(str(file)))


def test_xml_is_read_pair_by_pair(tmp_path):
    """A file larger than the limit is read; a pair, or text between pairs, that is larger is not."""
    file = tmp_path / "many.xml"
    pair = '<pair entailment="YES"><t>a</t><h>b</h></pair>'
    file.write_text(f"<c>{pair * 20_000}</c>")
    reader = RteXml(str(file), max_text_bytes=100_000)
    assert len(list(reader)) == 20_000
    for text in (f"<c>{pair}<pair><t>{'x' * 400_000}</t>", f"<c>{'<d>' * 100_000}"):
        file.write_text(text)
        with pytest.raises(UserError, match="<pair> has more than 100,000 bytes, the limit"):
            list(reader)


def test_real_pairs(data_root: Path):
    """The counts of the published files."""
    sick = list(Tsv("sick2014/SICK_trial.txt.gz", ("sentence_A", "sentence_B"), "entailment_judgment"))
    assert len(sick) == 500 and {label for _, label in sick} == {"NEUTRAL", "ENTAILMENT", "CONTRADICTION"}
    mrpc = list(Tsv("mrpc/msr-para-val.tsv.gz", ("#1 String", "#2 String"), "Quality"))
    assert len(mrpc) == 500 and {label for _, label in mrpc} == {"0", "1"} and not any("\r" in text for text, _ in mrpc)
    for name, count in (("rte1_dev", 567), ("rte1_test", 800), ("rte2_dev", 800), ("rte3_dev", 800)):
        pairs = list(RteXml(f"rte123/{name}.xml.gz"))
        assert len(pairs) in (count, 400) and all(text.count("\t") == 1 for text, _ in pairs)


def test_correlations():
    """As SciPy has them, ties included."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    gold, predicted = rng.integers(0, 6, 50), rng.normal(size=50).round(1)
    assert pearson(gold, predicted) == pytest.approx(stats.pearsonr(gold, predicted).statistic, abs=1e-12)
    assert spearman(gold, predicted) == pytest.approx(stats.spearmanr(gold, predicted).statistic, abs=1e-12)
    assert pearson(gold, np.ones(50)) == 0.0 and spearman(gold, gold**3) == pytest.approx(1.0)


def test_other_models_read_no_marks():
    from jaxlm.tasks.classification import Classification

    pairs = Tsv("x", 0, 1)
    task = Classification(pairs, pairs, pairs, sequence_format=SequenceFormat(), labels=("x", "y", "z"))
    with pytest.raises(
        UserError, match="have the form 'single', RecurrentClassifier reads None: set the task's sequence_format = None"
    ):
        task.check_model(ZOO["last"], TOKENIZER)
