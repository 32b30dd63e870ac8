"""JSON under a schema: the text of an untrained model is valid; unsupported schemas are refused with their place."""

import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from fixtures.table_model import TableModel, random_cases

from jaxlm.data.tokenizers.simple import Bytes
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.grammar import batch_dfas
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.grammar.json_schema import schema_to_regex
from jaxlm.grammar.regex import regex_to_dfa
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
AUTOMATON = build_token_dfa(regex_to_dfa(schema_to_regex(PERSON)), TOKENIZER, "the schema")
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
    request = replace(request, grammar=batch_dfas([AUTOMATON], np.zeros(ROWS, int), LIMIT))
    config = GenerationConfig(int(LIMIT.max()), sampler=Sampler(temperature, top_p=0.95))
    output = jax.device_get(generate(model, {}, request, config))
    assert len(check(output.tokens_BT, output.length_B)) > 20


def test_beams_are_valid(request_):
    model, request = request_
    first = jax.tree.map(lambda leaf: leaf[:8] if np.ndim(leaf) else leaf, request)
    first = replace(first, grammar=batch_dfas([AUTOMATON], np.zeros(8, int), first.limit_B))
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
        ({"type": "object"}, ["{}"], ['{"a": 1}']),
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
    pattern = schema_to_regex(schema)
    assert all(re.fullmatch(pattern, text) and json.loads(text) is not ... for text in yes)
    assert not any(re.fullmatch(pattern, text) for text in no)


REFUSED = [
    ({"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}}, "#/properties/a: 'minimum' is not"),
    ({"oneOf": [TEXT]}, "#: 'oneOf' is not supported"),
    ({"type": "text"}, 'type "text", expected one of'),
    ([], "found \\[\\], expected an object"),
    ({"type": "array"}, "array without items"),
    ({"type": "array", "items": {"$ref": "#"}}, "# refers to itself"),
    ({"$ref": "#/$defs/x"}, "leads nowhere"),
    ({"type": "object", "required": ["a"]}, "required names 'a'"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength 3 is above maxLength 2"),
    ({"type": "string", "minLength": -1}, "expected a whole number"),
    ({"enum": []}, "one value or more"),
    ({"anyOf": {}}, "one schema or more"),
    ({"type": "string", "const": 3}, "no value of enum or const"),
]


@pytest.mark.parametrize(("schema", "message"), REFUSED)
def test_schemas_that_are_refused(schema, message):
    with pytest.raises(UserError, match=message):
        schema_to_regex(schema)
