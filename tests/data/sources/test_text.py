"""Documents of files: the units, JSON lines, limits."""

import json

import pytest

from jaxlm.data.files import ReadStats
from jaxlm.data.sources.text import Documents, TextFile
from jaxlm.errors import UserError

UNITS = " = One = \n\na b .\n = = More = = \nc\n\n\n = Two = \nd\n"


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"unit": "line"}, [" = One = ", "a b .", " = = More = = ", "c", " = Two = ", "d"]),
        ({"unit": "block", "line_separator": "|"}, [" = One = ", "a b .| = = More = = |c", " = Two = |d"]),
        (
            {"unit": "heading", "heading": " = [^=]", "line_separator": "|"},
            [" = One = |a b .| = = More = = |c", " = Two = |d"],
        ),
    ],
)
def test_units(tmp_path, arguments, expected):
    (tmp_path / "text").write_text(UNITS)
    documents = Documents((str(tmp_path / "text"), str(tmp_path / "text")), **arguments)
    assert list(documents) == expected * 2


def test_json_lines_are_documents(tmp_path):
    lines = [{"meta": {"text": "eins"}}, {"meta": {"text": " "}}, {"meta": {"text": "zwei\ndrei"}}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    documents = Documents((str(tmp_path / "a.jsonl"),), "json", field="meta.text")
    assert list(documents.read(bad := ReadStats())) == ["eins", "zwei\ndrei"] and bad.blank == 1


@pytest.mark.parametrize("arguments", [{"unit": "heading"}, {"heading": "x"}, {"unit": "heading", "heading": "("}])
def test_units_that_make_no_sense(arguments):
    with pytest.raises(UserError, match="heading"):
        Documents(("text",), **arguments)


@pytest.mark.parametrize("arguments", [{"unit": "block"}, {"unit": "heading", "heading": " = "}, {"unit": "line"}])
def test_a_document_has_a_limit(arguments, tmp_path):
    (tmp_path / "text").write_text("abcdef\n" * 20 if arguments["unit"] != "line" else "abcdef" * 20)
    with pytest.raises(UserError, match=r"line \d+: the (document|line) has more than 100 bytes, the limit"):
        list(Documents((str(tmp_path / "text"),), **arguments, max_text_bytes=100))


def test_a_whole_text_has_a_limit(tmp_path):
    (tmp_path / "text").write_text("abcdef\n" * 20)
    assert len(list(TextFile(str(tmp_path / "text"), "whole", max_text_bytes=140))[0]) == 140
    with pytest.raises(UserError, match="the text has more than 139 bytes, the limit"):
        list(TextFile(str(tmp_path / "text"), "whole", max_text_bytes=139))
