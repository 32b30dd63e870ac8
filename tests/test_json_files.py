"""JSON within limits: what is read as it stands, and the sentence for everything else."""

import json
import os
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from jaxlm.errors import UserError
from jaxlm.json_files import MAX_JSON_DEPTH, check_type, parse_json, read_json

REFUSED = {
    "a name twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the name 'c' is in an object twice"),
    "NaN": (b'{"a": NaN}', "NaN is not a number of JSON"),
    "infinity": (b"[-Infinity]", "-Infinity is not a number of JSON"),
    "a number beyond floating point": (b"[1e999]", "1e999 is beyond floating point"),
    "an integer beyond floating point": (b"[" + b"9" * 400 + b"]", "400 digits"),
    "more digits than Python converts": (b"[" + b"9" * 5000 + b"]", "5000 digits"),
    "lists too deep": (b"[" * 101 + b"]" * 101, f"101 levels, expected at most {MAX_JSON_DEPTH}"),
    "objects too deep": (b'{"a":' * 101 + b"1" + b"}" * 101, f"101 levels, expected at most {MAX_JSON_DEPTH}"),
    "depth that Python refuses": (b"[" * 100_000, f"more than {MAX_JSON_DEPTH} levels"),
    "half a surrogate pair": (rb'{"a": "\ud800"}', "half of a surrogate pair"),
    "half a surrogate pair in a name": (rb'{"\udfff": 1}', "half of a surrogate pair"),
    "another encoding": ('{"a": "é"}'.encode("latin-1"), "not UTF-8 at byte 7"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
    "nothing": (b"", "line 1, column 1: not JSON"),
    "an end that is missing": (b'{"a":\n [1,', "line 2, column 5: not JSON"),
    "two values": (b"{} {}", "line 1, column 4: not JSON"),
    "another type": (b"[]", "expected an object, found []"),
}


@pytest.mark.parametrize("content, expected", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_json_is_refused_with_file_and_cure(tmp_path, content, expected):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(file, dict if content == b"[]" else Any, cure="fetch it again")
    message = str(caught.value)
    assert message.startswith(str(file)) and expected in message and message.endswith(": fetch it again")
    assert "\n" not in message


@pytest.mark.parametrize("value", [{"a": [1, -2.5, True, None, "é😀"]}, {"n": 10**30, "m": 2**64, "x": 1e308}, {}])
def test_values_are_read_as_they_were_written(value):
    for ensure_ascii in (True, False):  # with pairs of surrogates, and without
        text = json.dumps(value, ensure_ascii=ensure_ascii)
        assert parse_json(text, "x") == parse_json(b"\xef\xbb\xbf" + text.encode(), "x") == value
    assert parse_json(b"[" * 100 + b"]" * 100, "x", list) == json.loads("[" * 100 + "]" * 100)


def test_only_files_within_the_limit_are_read(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(b"[" + b" " * 1000 + b"]")
    assert read_json(file, list, max_bytes=1002) == []
    for max_bytes in (1001, 10):
        with pytest.raises(UserError, match=f"x.json has 1.0 kB, expected at most .*{str(max_bytes)[0]}"):
            read_json(file, list, max_bytes=max_bytes)
    with pytest.raises(UserError, match="1.0 kB, expected at most 10 bytes"):
        parse_json(file.read_bytes(), "x", max_bytes=10)
    os.mkfifo(tmp_path / "pipe")
    for name, problem in (("pipe", "not a regular file"), (".", "not a regular file"), ("none", "does not exist")):
        with pytest.raises(UserError, match=problem):
            read_json(tmp_path / name)


class Record(TypedDict):
    name: str
    sizes: NotRequired[list[int]]


@pytest.mark.parametrize(
    "value, annotation, expected",
    [
        (True, int, "x: expected an integer, found True"),
        (1.0, int, "x: expected an integer, found 1.0"),
        ("1", float, "x: expected a number, found '1'"),
        (0, bool, "x: expected true or false, found 0"),
        ("mid", Literal["pre", "post"], "x: expected one of 'pre', 'post', found 'mid'"),
        (True, Literal[1, 2], "x: expected one of 1, 2, found True"),
        ([1, "a"], list[int], "x[1]: expected an integer, found 'a'"),
        ((1, 2), tuple[int], "x: expected 1 values, found 2"),
        ([1, None], tuple[int, int], "x[1]: expected an integer, found None"),
        ({"a": [None]}, dict[str, list[str]], "x.a[0]: expected a string, found None"),
        ("a", int | None, "x: expected an integer or None, found 'a'"),
        ([1, "b"], list[int] | None, "x[1]: expected an integer, found 'b'"),
        ([], Record, "x: expected an object, found []"),
        ({}, Record, "x: it has no name"),
        ({"name": "a", "sizes": ["b"]}, Record, "x.sizes[0]: expected an integer, found 'b'"),
    ],
)
def test_wrong_types_are_named_with_their_place(value, annotation, expected):
    with pytest.raises(UserError) as caught:
        check_type(value, annotation, "x", "mend it")
    assert str(caught.value) == f"{expected}: mend it"


def test_right_types_pass():
    for value, annotation in [
        (1, float), (None, int | None), ([1, 2.5], list[float]), ((), tuple[int, ...]), ([1, "a"], tuple[int, str]),
        ({"name": "a", "more": 1}, Record), ("post", Literal["pre", "post"]), ({"a": 1}, dict[str, int]), (1, Any),
    ]:  # fmt: skip
        check_type(value, annotation, "x")
