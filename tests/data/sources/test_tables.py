"""CSV against the standard library's writer, and columns of Parquet, Arrow and saved data sets."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.files import ReadStats
from jaxlm.data.sources.arrow import ArrowTable
from jaxlm.data.sources.parallel import Csv, JsonLines, Tsv
from jaxlm.errors import UserError

ROWS = [("a, b", "x"), ('he said "no"', "y"), ("two\nlines; one field", "z"), ("ñandú|\ttab", "x")]
FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=12)


def write(path, rows, delimiter=",", header=("text", "label")):
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    path.write_text(stream.getvalue(), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("delimiter", "name"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "bars")], ids=str
)
def test_the_delimiter_is_recognized_and_named(delimiter, name, tmp_path):
    source = Csv(write(tmp_path / "x.csv", ROWS, delimiter), "text", "label")
    assert list(source) == ROWS and source.describe().endswith(f"separated by {name}")
    assert list(Csv(source.path, 1, 0, keep_blank=True))[1:] == [(label, text) for text, label in ROWS]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=5), st.sampled_from(",;\t|"))
def test_what_the_standard_library_writes_is_read(tmp_path_factory, rows, delimiter):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    write(path, rows, delimiter)
    assert list(Csv(str(path), 0, 1, keep_blank=True, delimiter=delimiter))[1:] == rows


def test_a_compressed_file_with_a_mark_of_byte_order(tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbflabel,text\r\n1,"a\r\nb"\r\n'))
    assert list(Csv(str(path), "text", "label")) == [("a\nb", "1")]


def test_faults_of_a_csv_file_are_named_with_the_line_where_the_record_begins(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('text,label\n"one\ntwo",1\n"open,2\nmore\n')
    with pytest.raises(UserError, match=r"x\.csv, line 4: a quote that opens there has no end"):
        list(Csv(str(path), "text", "label"))
    path.write_text('text,label\na\n"b"c,1\nd,2\n')
    with pytest.raises(UserError, match=r"line 2: 1 columns, expected at least 2 separated by commas"):
        list(Csv(str(path), "text", "label"))
    stats = ReadStats()
    assert list(Csv(str(path), "text", "label", on_bad_line="skip").read(stats)) == [("d", "2")]
    assert stats.skipped == 2
    with pytest.raises(UserError, match="lacks the column 'class'"):
        list(Csv(str(path), "text", "class"))
    with pytest.raises(UserError, match="more than 10 bytes"):
        path.write_text("text,label\n" + "a" * 20 + ",1\n")
        list(Csv(str(path), "text", "label", max_text_bytes=10))


def test_several_columns_and_whole_numbers(tmp_path):
    path = write(tmp_path / "x.csv", [("a\tb", "c", "0")], header=("one", "two", "label"))
    assert list(Csv(path, ("one", "two"), "label")) == [("a b\tc", "0")]
    (tmp_path / "x.jsonl").write_text(json.dumps({"data": {"text": "a"}, "label": 3}) + "\n")
    assert list(JsonLines(str(tmp_path / "x.jsonl"), "data.text", "label")) == [("a", "3")]
    (tmp_path / "x.tsv").write_text("a\tb\n")
    assert list(Tsv(str(tmp_path / "x.tsv"), 0, 1)) == [("a", "b")]


@pytest.fixture(scope="module")
def table():
    pyarrow = pytest.importorskip("pyarrow")
    texts = [f"text {number}" for number in range(3000)]
    records = [{"en": text, "es": text.upper()} for text in texts]
    return pyarrow.table({"text": texts, "label": list(range(3000)), "pair": records, "list": [[1]] * 3000})


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream", "saved"])
def test_column_stores(kind, table, tmp_path):
    from pyarrow import ipc, parquet

    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=700)
    elif kind == "arrow":
        with ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, 512)
    else:
        path.mkdir()
        file = path / "data-00000-of-00001.arrow"
        with ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": file.name}]}))
        path = file if kind == "stream" else path
    expected = [(text, str(label)) for label, text in enumerate(table["text"].to_pylist())]
    assert list(ArrowTable(str(path), "text", "label")) == expected
    assert next(iter(ArrowTable(str(path), ("text", "pair.en"), "pair.es"))) == ("text 0\ttext 0", "TEXT 0")
    with pytest.raises(UserError, match="lacks the column class: it has text, label, pair, list"):
        list(ArrowTable(str(path), "text", "class"))
    with pytest.raises(UserError, match=r"row 1: 'text.en' leads into str, expected a record with 'en'"):
        list(ArrowTable(str(path), "text.en", "label"))
    with pytest.raises(UserError, match=r"row 1: 'list' holds list, expected a text or a whole number"):
        list(ArrowTable(str(path), "text", "list"))


def test_faults_of_column_stores(table, tmp_path):
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(table, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="not a readable Parquet or Arrow file"):
        list(ArrowTable(str(path), "text", "label"))
    path.write_text("plain text")
    with pytest.raises(UserError, match="not a readable Parquet or Arrow file"):
        list(ArrowTable(str(path), "text", "label"))
    (tmp_path / "saved" / "train").mkdir(parents=True)
    (tmp_path / "saved" / "train" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="name one of its splits: train"):
        list(ArrowTable(str(tmp_path / "saved"), "text", "label"))
