"""JSON under a schema: the text of an untrained model is valid; unsupported schemas are refused with their place."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from fixtures.table_model import TableModel, random_cases

from jaxlm.data.tokenizers.simple import Bytes, Characters, WordTokenizer
from jaxlm.data.tokenizers.token_bytes import get_token_bytes
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.grammar import batch_dfa
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.grammar.constraint import json_schema, require_writable, schema_constraint
from jaxlm.grammar.token_dfa import build_token_dfa

TEXT = {"type": "string"}
PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": ["integer", "null"]},
        "tags": {"type": "array", "items": {"enum": ["a b", 'q"', "é", 3]}, "maxItems": 3},
        "at": {"$ref": "#/$defs/point"},
        "note": {"anyOf": [TEXT, {"type": "boolean"}]},
    },
    "required": ["age", "at"],
    "additionalProperties": False,
    "$defs": {"point": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}},
}
IS = {
    "string": lambda x: isinstance(x, str),
    "integer": lambda x: isinstance(x, int) and not isinstance(x, bool),
    "number": lambda x: isinstance(x, int | float) and not isinstance(x, bool),
    "boolean": lambda x: isinstance(x, bool),
    "null": lambda x: x is None,
    "object": lambda x: isinstance(x, dict),
    "array": lambda x: isinstance(x, list),
}


def valid(value, schema, root=PERSON):
    if "$ref" in schema:
        return valid(value, root["$defs"][schema["$ref"].split("/")[-1]], root)
    if "anyOf" in schema:
        return any(valid(value, each, root) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(IS[kind](value) for kind in kinds):
        return False
    if isinstance(value, str):
        return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1e9)
    if isinstance(value, list):
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1e9)
        return fits and all(valid(each, schema["items"], root) for each in value)
    if isinstance(value, dict):
        known = schema.get("properties", {})
        whole = set(schema.get("required", [])) <= set(value) <= set(known)
        return whole and all(valid(each, known[name], root) for name, each in value.items())
    return True


ROWS = 250
TOKENIZER = Bytes().fit()
AUTOMATON = build_token_dfa(schema_constraint(PERSON).automaton, TOKENIZER, "the schema")
LIMIT = AUTOMATON.shortest_length + np.arange(ROWS) % 40


@pytest.fixture(scope="module")
def request_():
    model = TableModel(TOKENIZER.vocab_size, order=1)
    one = random_cases(TableModel(TOKENIZER.vocab_size, order=1), np.random.default_rng(0), 2)
    table = np.maximum(one.table_BCV[:1], -40.0).repeat(ROWS, axis=0)
    return model, DecodeRequest(model.batch(table), np.full((ROWS, 1), 2), np.ones((ROWS, 1), bool), LIMIT)


def check(tokens, length):
    """Check that all texts are JSON that the schema admits, within their limits."""
    texts = TOKENIZER.decode(tokens.tolist())
    assert (length <= LIMIT).all()
    assert all(valid(json.loads(text), PERSON) for text in texts)
    return set(texts)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0, 100.0])
def test_a_thousand_samples_are_valid(request_, temperature):
    """250 at each of four temperatures, with limits from the shortest possible text."""
    model, request = request_
    request = replace(request, grammar=batch_dfa(AUTOMATON, LIMIT))
    config = GenerationConfig(int(LIMIT.max()), sampler=Sampler(temperature, top_p=0.95))
    output = jax.device_get(generate(model, {}, request, config))
    assert len(check(output.tokens_BT, output.length_B)) > 20


def test_beams_are_valid(request_):
    model, request = request_
    first = jax.tree.map(lambda leaf: leaf[:8] if np.ndim(leaf) else leaf, request)
    first = replace(first, grammar=batch_dfa(AUTOMATON, first.limit_B))
    hypotheses = jax.device_get(beam_search(model, {}, first, BeamSearchConfig(64, beam=Beam(3, 1))))
    texts = TOKENIZER.decode(hypotheses.tokens_BNT[:, 0].tolist())
    assert all(valid(json.loads(text), PERSON) for text in texts)


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"type": "integer"}, ["0", "-12"], ["01", "1.0", "", "+1", "1" * 16]),
        ({"type": "number"}, ["0.50", "-1e-9", "2E+10"], ["1.", ".5", "1e999", "NaN"]),
        (TEXT, ['""', '"é\\n\\""', '"\U0001f600"'], ['"', '"\\x"', '"a\nb"', "a"]),
        ({"type": "array", "items": TEXT}, ["[]", '["a", "b"]', '["a","b"]'], ["[,]", '["a"', '["a",  "b"]']),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"const": {"a": [1, None]}}, ['{"a": [1, null]}'], ['{"a":[1]}']),
        ({"type": "string", "enum": ["a.c", 3]}, ['"a.c"'], ['"abc"', "3"]),
        ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a": 1}']),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            ["{}", '{"a": 1}', '{"a": 1, "\\n": 2,"ü":-3}'],
            ['{"a": "1"}', '{"a": 1,}', '{,"a": 1}', "{a: 1}"],
        ),
        (
            {
                "type": "object",
                "properties": {"a/\n": {"const": 1}},
                "additionalProperties": {"const": 2},
                "required": ["b"],
            },
            ['{"b": 2}', '{"a/\\n": 1, "b": 2}', '{"b": 2, "a": 2, "a/": 2, "a/\\nc": 2, "": 2, "c": 2}'],
            ["{}", '{"a/\\n": 1}', '{"a/\\n": 2, "b": 2}', '{"b": 2, "a/\\n": 2}', '{"b": 2, "a\\/\\n": 2}'],
        ),
        ({"type": "array", "items": {"const": 1}, "minItems": 2.0}, ["[1, 1]", "[1,1,1]"], ["[]", "[1]", "[1, 1, ]"]),
        (
            {"type": "array", "items": {"const": 1}, "maxItems": 2},
            ["[]", "[1]", "[1, 1]"],
            ["[1, ]", "[1, 1, 1]", "[, 1]"],
        ),
        (
            {"type": "array", "prefixItems": [{"enum": ["a", "b"]}, TEXT], "items": False, "minItems": 2},
            ['["a", "x"]', '["b",""]'],
            ["[]", '["a"]', '["x", "a"]', '["a", "x", "y"]'],
        ),
        (
            {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}},
            ["[]", "[1]", "[1, 2]", "[1, 2, 3]", "[1, 2, 3, 3]"],
            ["[2]", "[1, 3]", "[1, 2, 2]", "[3]", "[1, 2, ]"],
        ),
        ({"type": "array", "prefixItems": [{"const": 1}] * 2, "maxItems": 1}, ["[]", "[1]"], ["[1, 1]", "[2]"]),
        (
            {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 3}, "minItems": 3, "maxItems": 4},
            ["[1, 3, 3]", "[1, 3, 3, 3]"],
            ["[1, 3]", "[1, 3, 3, 3, 3]", "[3, 3, 3]"],
        ),
        ({"type": "array", "items": False}, ["[]"], ["[1]"]),
        ({"type": "number", "enum": [1, 2.5, True, "1"]}, ["1", "2.5"], ["true", '"1"', "1.0"]),
        ({"type": "integer", "enum": [1.0, 2, 0.5]}, ["1", "1.0", "2"], ["0.5", "2.0"]),
        ({"type": ["boolean", "null"], "enum": [1, 0, None, False]}, ["null", "false"], ["1", "0", "true"]),
        ({"const": "\ud800\x01ü"}, ['"\\ud800\\u0001ü"'], ['"\\ud801"']),
        (
            {"$id": "https://a.b/c", "$ref": "#/$defs/a%20~0~1/anyOf/1", "$defs": {"a ~/": {"anyOf": [{}, TEXT]}}},
            ['"a"'],
            ["1"],
        ),
        (
            {"type": "object", "properties": {k: {"const": 1} for k in "abc"}, "required": ["b"]},
            ['{"b": 1}', '{"a": 1, "b": 1}', '{"b": 1, "c": 1}', '{"a":1,"b":1,"c":1}'],
            ["{}", '{"a": 1, "c": 1}', '{, "b": 1}', '{"b": 1, }', '{"b": 1, "a": 1}'],
        ),
        (
            {"type": "object", "properties": {k: {"const": 1} for k in "abc"}},
            ["{}", '{"a": 1}', '{"c": 1}', '{"a": 1, "c": 1}', '{"b": 1, "c": 1}'],
            ['{"a": 1, "a": 1}', '{"a": 1,}', '{,"c": 1}'],
        ),
    ],
)
def test_expressions(schema, yes, no):
    automaton = schema_constraint(schema).automaton
    assert all(automaton.accepts(text.encode()) and json.loads(text) is not ... for text in yes)
    assert not any(automaton.accepts(text.encode()) for text in no)


REFUSED = [
    ({"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}}, "#/properties/a: 'minimum' is not"),
    ({"oneOf": [TEXT]}, "#: 'oneOf' is not supported"),
    ({"type": "text"}, 'type "text", expected one of'),
    ([], "found \\[\\], expected an object"),
    ({"type": "array"}, "array without items"),
    ({"type": "array", "prefixItems": [TEXT]}, "array without items"),
    ({"type": "array", "prefixItems": [TEXT], "items": True}, "array without items"),
    ({"type": "array", "prefixItems": TEXT}, "expected a list of schemas"),
    ({"type": "array", "prefixItems": [TEXT], "items": False, "minItems": 2}, "minItems 2 is above the 1 items"),
    ({"type": "array", "prefixItems": [TEXT, {"type": "x"}], "items": False}, "#/prefixItems/1: type"),
    ({"type": "array", "items": {"$ref": "#"}}, "# refers to itself"),
    ({"$ref": "#/$defs/x"}, "leads nowhere"),
    ({"type": "object", "required": ["a"]}, "required names 'a'"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength 3 is above maxLength 2"),
    ({"type": "string", "minLength": -1}, "expected a whole number"),
    ({"enum": []}, "one value or more"),
    ({"anyOf": {}}, "one schema or more"),
    ({"type": "string", "const": 3}, "no value of enum or const"),
    ({"type": "integer", "const": True}, "no value of enum or const is of type integer"),
    ({"type": "object"}, "#: an object without properties"),
    ({"type": "object", "additionalProperties": True}, "#: an object without properties"),
    ({"type": "object", "properties": {"a": TEXT}, "additionalProperties": 3}, "additionalProperties 3, expected"),
    ({"type": "object", "additionalProperties": {}}, "#/additionalProperties: no type: add one of"),
    ({"type": "object", "properties": {"a/b": True}}, "#/properties/a~1b: found true"),
    ({"type": []}, "#: no type"),
    ({"type": "array", "items": TEXT, "minItems": True}, "minItems true, expected a whole number"),
    ({"type": "array", "items": TEXT, "minItems": 1.5}, "minItems 1.5, expected a whole number"),
    ({"const": [float("inf")]}, "has a number that JSON cannot write"),
    ({"$ref": "#name", "type": "string"}, "'type' is not supported here"),
    ({"$ref": "#name"}, '\\$ref "#name" leads nowhere'),
    ({"$ref": "#/anyOf/01", "anyOf": 3}, "'anyOf' is not supported here"),
    ({"$ref": "#/$defs/a/2", "$defs": {"a": [TEXT, TEXT]}}, "leads nowhere"),
    ({"anyOf": [{"$id": "x", "type": "string"}]}, "#/anyOf/0: '\\$id' is not supported here"),
    ({"type": "string", "maxLength": 10**6}, "too large .over 300,000 nodes and edges"),
    ({"type": "array", "items": TEXT, "minItems": 10**9}, "too large .over 300,000 nodes and edges"),
]


def nested(levels: int):
    """Objects in arrays in objects, with two members each."""
    schema = TEXT
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": {"type": "array", "items": schema}, "b": TEXT}}
    return schema


def test_schemas_grow_by_their_size_and_not_by_their_levels(tmp_path):
    states = {levels: len(schema_constraint(nested(levels)).automaton.next_QX) for levels in (1, 40)}
    assert states[40] < 45 * states[1]
    with pytest.raises(UserError, match="the schema has over 100 levels"):
        schema_constraint(nested(60))
    twice = {
        f"a{k}": {"type": "object", "properties": {x: {"$ref": f"#/$defs/a{k + 1}"} for x in "xy"}} for k in range(40)
    }
    with pytest.raises(UserError, match="over 300,000 nodes and edges, 15 for each of 20,000 states"):
        schema_constraint({"$ref": "#/$defs/a0", "$defs": twice | {"a40": TEXT}})
    with pytest.raises(UserError, match="over 100 states.*--max-states"):
        schema_constraint(nested(10), max_states=100)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"type": "string", "type": "integer"}', "the name 'type' is in an object twice: fix the schema"),
        (b'{"const": NaN}', "NaN is not a number of JSON"),
        (b'{"a":\n]', "line 2, column 1: not JSON"),
        (b" " * (5 << 20), "expected at most 4.2 MB"),
        (b'{"type": "text"}', "schema.json: JSON schema, #: type"),
    ],
)
def test_files_that_are_refused(tmp_path, content, message):
    file = tmp_path / "schema.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        json_schema(file)
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(TEXT).encode())
    assert json_schema(file).automaton.accepts(b'"a"')


@pytest.mark.parametrize(("schema", "message"), REFUSED)
def test_schemas_that_are_refused(schema, message):
    with pytest.raises(UserError, match=message):
        schema_constraint(schema)


def test_each_literal_can_be_written_or_is_named(tmp_path):
    file = tmp_path / "schema.json"
    tokenizer = Characters().fit(['{"ab": 1, }cn'])
    for schema, lacking in (
        ({"enum": ["abc", 1, {"a": "b"}]}, None),
        ({"enum": ["abc", "nö"]}, '"nö"'),
        ({"type": "object", "properties": {"ab": {"const": 1}, "ax": {"const": 1}}}, '"ax"'),
    ):
        file.write_text(json.dumps(schema))
        literals = json_schema(file).literals
        if lacking is None:
            require_writable(literals, tokenizer, "the schema")
            continue
        with pytest.raises(UserError, match=f"the schema: {lacking} cannot be written by this tokenizer"):
            require_writable(literals, tokenizer, "the schema")


def test_tokens_may_cross_the_ends_of_a_literal():
    tokenizer = WordTokenizer(("a",))
    pieces = replace(get_token_bytes(tokenizer), initial=[b'{"', b'x"ab', b'cd"y', b"pqr"], rest=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxlm.grammar.constraint.get_token_bytes", lambda _: pieces)
        require_writable(['"abcd"', "abcd", "q", '"'], tokenizer, "it")
        with pytest.raises(UserError, match="it: abe cannot be written"):
            require_writable(["abe"], tokenizer, "it")
