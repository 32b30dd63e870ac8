"""Constraints with words of each row's source equal those that spell the words out, token by token."""

import json
from functools import cache

import numpy as np
import pytest
from fixtures.zoo import params_of

from jaxlm.data.tokenizers.base import SpecialIds
from jaxlm.data.tokenizers.pretrained import FastTokenizer
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.data.tokenizers.simple import Bytes, Words
from jaxlm.data.tokenizers.token_bytes import get_token_bytes
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.grammar.constraint import schema_constraint
from jaxlm.grammar.source_dfa import SourceTemplate, source_spans
from jaxlm.grammar.token_dfa import build_token_dfa
from jaxlm.inference.base import TrainedModel
from jaxlm.inference.constraints import compile_constraint, constrain_search
from jaxlm.inference.generate import GenerationRequest, draw_samples
from jaxlm.inference.translate import Search, translate
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder_decoder import EncoderDecoder

FRAMES = ["Motion", "Killing", "Mo"]
SOURCES = ['the Mo said "no" twice', "a\\b \U0001f600 é a", "Killing", "x  y\tz x"]
TEXTS = [
    json.dumps([["Motion", "Mo"], ["Killing", word]], ensure_ascii=False) for text in SOURCES for word in text.split()
]


def pairs(words=1, spans=None, **bounds):
    """The schema of a list of [frame, words of the source]; `spans` are spelled out instead."""
    trigger = {"enum": spans} if spans else {"type": "string", "x-source-words": words}
    pair = {"type": "array", "prefixItems": [{"enum": FRAMES}, trigger], "items": False, "minItems": 2}
    return {"type": "array", "items": pair, **bounds}


@cache
def tokenizer_named(name):
    if name == "bytes":
        return Bytes().fit()
    if name == "sentencepiece":
        return SentencePiece(vocab_size=330, model_type="bpe").fit(TEXTS * 3)
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())  # merges cross the quotes: nothing is split before
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    bpe.train_from_iterator(TEXTS * 3, trainer)
    bpe.add_tokens([tokenizers.AddedToken('"a é', normalized=False)])
    special = SpecialIds(pad=None, unk=None, bos=None, eos=0, start=0, end_ids=(0,))
    return FastTokenizer(bpe.to_str(), bpe.get_vocab_size(), special)


NAMES = ("bytes", "sentencepiece", "byte-level")
SCHEMAS = {
    "pairs": lambda spans=None: pairs(1, spans), "spans of two words": lambda spans=None: pairs(2, spans),
    "two at most": lambda spans=None: pairs(1, spans, maxItems=2, minItems=1),
    "alone, or null": lambda spans=None: {
        "anyOf": [{"type": "null"}, {"enum": spans} if spans else {"type": "string", "x-source-words": 3}]
    },
}  # fmt: skip
WORDS = {"pairs": 1, "spans of two words": 2, "two at most": 1, "alone, or null": 3}


@pytest.mark.parametrize("continues", [False, True], ids=["whole text", "after a prompt"])
@pytest.mark.parametrize("form", SCHEMAS)
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_the_words_spelled_out(name, form, continues):
    """In all states that texts reach: the same ids, and the same least number of ids to the end."""
    tokenizer, made = tokenizer_named(name), schema_constraint(SCHEMAS[form]())
    template = SourceTemplate(made.automaton, made.source_words, tokenizer, continues=continues)
    for source in SOURCES:
        row = template.row(source)
        spelled = schema_constraint(SCHEMAS[form](source_spans(source, WORDS[form]))).automaton
        expected = build_token_dfa(spelled, tokenizer, continues=continues)
        checked, waiting = set(), [(0, 0)]
        while waiting:
            theirs, ours = pair = waiting.pop()
            if pair in checked:
                continue
            checked.add(pair)
            assert row.distance_Q[ours] == expected.distance_Q[theirs]
            theirs_V, ours_V = expected.next_QC[theirs, expected.class_V], next_states(template, row, ours)
            np.testing.assert_array_equal(theirs_V >= 0, ours_V >= 0)
            waiting += set(zip(theirs_V[theirs_V >= 0].tolist(), ours_V[ours_V >= 0].tolist(), strict=True))
        assert len(checked) > 3


def next_states(template, row, state):
    shared = len(template.row_state_Q)
    index = template.row_state_Q[state] if state < shared else state - shared + 1 + len(template.entering)
    shared_V = template.next_QC[min(state, shared - 1), template.class_V]
    own_V = row.next_RC[index, row.class_V]
    assert (np.minimum(shared_V, own_V) < 0).all(), "an id has one transition"
    next_V = np.maximum(shared_V, own_V)
    return np.where(row.distance_Q[next_V] >= 0, next_V, -1)


def test_spans_of_a_source():
    assert source_spans("a b  a", 2) == ["a", "a b", "b", "b  a"] and source_spans(" \n", 3) == []
    with pytest.raises(UserError, match="no text can be written with the words of the source"):
        made = schema_constraint({"type": "string", "x-source-words": 1})
        SourceTemplate(made.automaton, 1, tokenizer_named("bytes")).row("  ")


@pytest.mark.parametrize(
    "schema, message",
    [
        ({"type": "string", "x-source-words": 0}, "whole number of 1"),
        ({"type": "string", "x-source-words": True}, "whole number of 1"),
        ({"type": "string", "x-source-words": 1, "maxLength": 3}, "'maxLength' is not supported here"),
        ({"anyOf": [{"type": "string", "x-source-words": 1}, {"const": "a"}]}, "another string"),
        ({"type": "array", "prefixItems": [{"type": "string", "x-source-words": n} for n in (1, 2)], "items": False},
         "expected one number"),
    ],
)  # fmt: skip
def test_schemas_that_are_refused(schema, message):
    with pytest.raises(UserError, match=message):
        schema_constraint(schema)


def check_pairs(text, source):
    answer = json.loads(text)
    assert all(frame in FRAMES and trigger in source.split() for frame, trigger in answer)
    return len(answer)


def test_samples_of_an_untrained_model():
    """At temperature 2 each text is complete JSON with frames of the list and words of the prompt."""
    tokenizer = tokenizer_named("byte-level")
    model = Decoder(tokenizer.vocab_size + 3, 8, 2, 8, 1, position="rotary", norm_kind="rms")
    trained = TrainedModel(model, params_of(model), tokenizer)
    request = GenerationRequest(
        Sampler(temperature=2.0), 3, 8, 40, (), schema_constraint(pairs()), source_of=lambda prompt: prompt[5:]
    )
    count = 0
    for sample in draw_samples(trained, [f"Find {source}" for source in SOURCES[:2]], request):
        assert sample.reason == "stop"
        count += check_pairs(sample.text, sample.prompt[5:])
    assert count, "some pairs are written"


def test_answers_of_an_untrained_model():
    """Beams of rows with other sources and lengths; a limit that is too small for a source is an error."""
    tokenizer = tokenizer_named("sentencepiece")
    model = EncoderDecoder(tokenizer.vocab_size, 8, 2, 8, 1, 1, dropout=0.0, max_length=128)
    trained = TrainedModel(model, params_of(model), tokenizer)
    constraint = schema_constraint(pairs(1, None, minItems=1))
    search = constrain_search(Search(max_len_ratio=0.0, max_len_extra=40), constraint, tokenizer)
    lines = [*SOURCES, *SOURCES[::-1]]
    for line, hypotheses in zip(lines, translate(trained, lines, search), strict=True):
        assert hypotheses[0].reason == "stop" and check_pairs(hypotheses[0].text, line) >= 1
    short = constrain_search(Search(max_len_ratio=0.0, max_len_extra=3), constraint, tokenizer)
    with pytest.raises(UserError, match="the shortest text that matches has"):
        translate(trained, lines, short)


def test_bytes_of_published_byte_level_ids():
    """The bytes of the ids of a row are its text; those of control tokens are none."""
    tokenizer = tokenizer_named("byte-level")
    text = get_token_bytes(tokenizer).rest
    assert text[0] is None and '"a é'.encode() in text
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, tokenizer.vocab_size, size).tolist() for size in (1, 2, 3, 9)]
    for row, decoded in zip(rows, tokenizer.decode(rows), strict=True):
        assert b"".join(text[index] for index in row).decode(errors="replace") == decoded


def test_constraints_on_words_are_refused_by_name():
    with pytest.raises(UserError, match="cannot be written by this tokenizer"):
        compile_constraint(schema_constraint(pairs()), Words().fit(["a b"]))
