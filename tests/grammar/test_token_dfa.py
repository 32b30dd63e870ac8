"""Automata over the ids of every tokenizer accept exactly the decoded texts that Python's `re` matches."""

import itertools
import re

import numpy as np
import pytest

from jaxlm.data.tokenizers.base import EOS, NUM_SPECIALS
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.data.tokenizers.simple import Bytes, Characters, Words, WordsWithChars
from jaxlm.data.tokenizers.token_bytes import get_token_bytes
from jaxlm.decode.grammar import batch_dfa
from jaxlm.errors import UserError
from jaxlm.grammar.byte_dfa import START_STATE, complement_ranges, strings_to_dfa, utf8_byte_sequences
from jaxlm.grammar.regex import regex_to_dfa
from jaxlm.grammar.token_dfa import build_token_dfa
from jaxlm.inference.text_stream import ContinuationDecoder

TEXTS = [
    "the green witch arrived",
    "a b c  d é x",
    '{"a": 1, "b": [2, 3]}',
    "ab cé ab cab",
    "a b a b ab abc cab bab",
] * 3
TOKENIZERS = {
    "bytes": Bytes().fit(),
    "characters": Characters().fit(["abc é"]),
    "words": Words().fit(["a b ab cé abc"]),
    "spelled": WordsWithChars().fit(["a b ab cé abc"]),
    "sentencepiece": SentencePiece(vocab_size=292, user_defined_symbols=("\n",)).fit(TEXTS),
    "bpe, spaces removed": SentencePiece(vocab_size=292, model_type="bpe", remove_extra_whitespaces=True).fit(TEXTS),
}
EXPRESSIONS = [
    "a|ab", "a??b", "(a|ab)(c|bc[ab])", "a*?", "[^b]*", ".{0,2}", "é+|ж", "(?i)AB", "^ab$", "a{2,3}?", "(ab)?", "",
    "a*b*|c", "(?P<n>a)b", r"\w+", r"\W?[^\Wa]", "(?s:.)*", "(a*)*b", "((a|b)?c){2}", "[^é]+", r"\Aa*\Z", "^", "(^|a)b",
    "a($|b)", "(?:a )*b", " a", "a  b?",
]  # fmt: skip


@pytest.mark.parametrize("pattern", EXPRESSIONS)
def test_expressions_match_like_python(pattern):
    automaton = regex_to_dfa(pattern)
    for size in range(6):
        for text in map("".join, itertools.product("abcé", repeat=size)):
            assert automaton.accepts(text.encode()) == (re.fullmatch(pattern, text) is not None), text


def test_sets_of_characters_in_utf8():
    everything = [
        bytes(range(low, high + 1)) for parts in utf8_byte_sequences(complement_ranges(())) for low, high in parts
    ]
    assert everything
    automaton = regex_to_dfa("(?s:.)")
    for point in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF):
        assert automaton.accepts(chr(point).encode())
    for wrong in (b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\x80", b"\x80", b"\xc3", b""):
        assert not automaton.accepts(wrong)
    word = regex_to_dfa(r"\w")
    points = np.random.default_rng(0).integers(0, 0xD800, 5000)
    assert all(word.accepts(chr(p).encode()) == (re.fullmatch(r"\w", chr(p)) is not None) for p in points)


def accepts(automaton, ids):
    state = START_STATE
    for index in [*ids, EOS]:
        state = automaton.next_QC[state, automaton.class_V[index]]
        if state < 0:
            return False
    return True


def rows_of(name):
    """All rows of up to three of the ids that write the letters of the expressions, and their texts."""
    tokenizer = TOKENIZERS[name]
    singles = tokenizer.decode([[index] for index in range(NUM_SPECIALS, tokenizer.vocab_size)])
    used = [index for index, text in enumerate(singles, NUM_SPECIALS) if set(text) <= set("abcé \n")][:14]
    used += [index for index, text in enumerate(get_token_bytes(tokenizer).rest) if text in (b"\xc3", b"\xa9")]
    rows = [ids for size in range(4) for ids in itertools.product(used, repeat=size)]
    return list(zip(rows, tokenizer.decode([list(ids) for ids in rows]), strict=True))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_decoded_text_matches(name):
    """A row of ids may be written, with EOS after it, if and only if its text matches.

    (Where a model removes spaces, the same text in fewer ids: a first piece that is one space writes nothing.)
    """
    rows = rows_of(name)
    for pattern in ("(a|ab)+", "(?:ab|c|é| ){0,3}", "[^b]*", " a|a b c?", "(a b)*", "", "\n?a", ".é?"):
        matches = [re.fullmatch(pattern, text) is not None and "\ufffd" not in text for _, text in rows]
        try:
            automaton = build_token_dfa(regex_to_dfa(pattern), TOKENIZERS[name])
        except UserError:
            assert not any(matches)
            continue
        for (ids, text), expected in zip(rows, matches, strict=True):
            result = accepts(automaton, ids)
            assert result <= expected if "removed" in name else result == expected, (pattern, ids, text)
        assert (automaton.next_QC[:, automaton.class_V[:EOS]] < 0).all(), "padding, unknown, BOS"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_text_after_a_prompt_matches(name):
    """What a row of ids adds to a text, the space before its first word included."""
    tokenizer = TOKENIZERS[name]
    prompt = next(ids for ids, text in rows_of(name) if len(ids) == 2 and text.strip() == text and "\ufffd" not in text)
    rows = [ids for ids, _ in rows_of(name) if len(ids) < 3]
    texts = ContinuationDecoder(tokenizer, prompt).decode(rows)
    for pattern in (" a|b", "a|b", " ?[abc]+", "( [^ ]+)*", "", "[^b]*"):
        matches = [re.fullmatch(pattern, text) is not None and "\ufffd" not in text for text in texts]
        try:
            automaton = build_token_dfa(regex_to_dfa(pattern), tokenizer, continues=True)
        except UserError:
            assert not any(matches)
            continue
        assert [accepts(automaton, ids) for ids in rows] == matches, pattern


@pytest.mark.parametrize("name", TOKENIZERS)
def test_distances(name):
    """The least number of ids to the end, EOS counted, against all short rows; every state reaches the end."""
    automaton = build_token_dfa(
        strings_to_dfa(["a b", "ab ab", "cab"][: 2 if "word" in name or name == "spelled" else 3]), TOKENIZERS[name]
    )
    lengths = [len(ids) + 1 for ids, _ in rows_of(name) if accepts(automaton, ids)]
    assert automaton.shortest_length == min(lengths) and (automaton.distance_Q >= 0).all()
    for state in range(len(automaton.next_QC) - 1):
        after = automaton.next_QC[state][automaton.next_QC[state] >= 0]
        assert automaton.distance_Q[state] == 1 + automaton.distance_Q[after].min()
    with pytest.raises(UserError, match=f"shortest text that matches has {automaton.shortest_length} tokens"):
        batch_dfa(automaton, [automaton.shortest_length - 1])


def test_sentencepiece_texts_contain_no_escape():
    """Text that its decoder would replace by another character is never generated."""
    tokenizer = TOKENIZERS["sentencepiece"]
    automaton = build_token_dfa(regex_to_dfa("(?s:.)*"), tokenizer)
    byte = {text: index for index, text in enumerate(get_token_bytes(tokenizer).rest) if text and len(text) == 1}
    for text, allowed in (("\ue000", False), ("\ue001", True), ("\u2581", True), ("a\ue000\ue001", False)):
        ids = [byte[bytes([each])] for each in text.encode()]
        assert accepts(automaton, ids) == allowed
        assert not allowed or tokenizer.decode([ids]) == [text]


WRONG = {
    "[z": "wrong at character 1: unterminated character set",
    "a{3}{2}": "wrong at character 5",
    "(?=a)b": "look-ahead",
    r"(a)\1": "back-references",
    r"\ba": r"\\b",
    "[a-z]{100000}": "too large .over 300,000 nodes and edges.*--max-states",
    ".*a.{20}": "too large .over 20,000 states.*--max-states",
    r"\w{0,200}": "too large .over 300,000 nodes and edges",
    "(a?b?){2000}": "too large .sets of over 1,000,000 nodes, 50 for each of 20,000 states",
    "((((a{100}){100}){100}){100})": "too large .over 300,000 nodes and edges, 15 for each of 20,000 states",
    "(" + "|" * 100_000 + "){4000000}": "too large .over 300,000 nodes and edges",
    "(?:){4294967290}": "too large .over 300,000 nodes and edges",
    "a{" + "9" * 5000 + "}": "too large: use smaller counts",
    "(" * 5000 + ")" * 5000: "too large: .*fewer brackets",
    "a" * 200_001: "has 200,001 characters, at most 200,000",
    "a\udc80": "is not UTF-8",
}


@pytest.mark.parametrize(
    "pattern", ["(a?){3}", "(?:(b{0,2})*?){2}", "((?i:a)?){2}", "(a?b?){2}", "(^a?){2}", "(a{0}){3}"]
)
def test_repeats_of_repeats_match_like_python(pattern):
    automaton = regex_to_dfa(pattern)
    for text in map("".join, itertools.chain.from_iterable(itertools.product("abA", repeat=n) for n in range(6))):
        assert automaton.accepts(text.encode()) == bool(re.fullmatch(pattern, text)), text


def test_optional_repeats_grow_with_their_count():
    assert len(regex_to_dfa("((a?){3}){5000}").next_QX) == 15_001
    with pytest.raises(UserError, match="over 10 states"):
        regex_to_dfa("(a?){10}", max_states=10)
    assert len(regex_to_dfa("(?i)[\x00-\U0010ffff]{0,100}").next_QX) < 1000


@pytest.mark.parametrize("pattern", WRONG, ids=lambda pattern: pattern[:20].replace("\udc80", "?"))
def test_expressions_that_are_refused(pattern):
    with pytest.raises(UserError, match=WRONG[pattern]):
        regex_to_dfa(pattern)


def test_texts_that_no_tokenizer_can_write():
    with pytest.raises(UserError, match="no text that matches can be written by this tokenizer"):
        build_token_dfa(regex_to_dfa("xyz"), TOKENIZERS["characters"])
    with pytest.raises(UserError, match="no choice"):
        strings_to_dfa([])


def test_each_choice_can_be_written_or_is_named():
    tokenizer = Words().fit(["yes no may be"])
    texts = ["yes", "may be", "perhaps", "no"]
    automaton = strings_to_dfa(texts)
    build_token_dfa(automaton, tokenizer)
    with pytest.raises(UserError, match="the choices: 'perhaps' cannot be written by this tokenizer"):
        build_token_dfa(automaton, tokenizer, "the choices", require_all=True)
    build_token_dfa(strings_to_dfa(["yes", "may be", ""]), tokenizer, require_all=True)
    with pytest.raises(UserError, match=r"'b\\ue000' cannot be written"):
        build_token_dfa(strings_to_dfa(["a", "b\ue000"]), TOKENIZERS["sentencepiece"], require_all=True)
    with pytest.raises(UserError, match="a table of 6 states and 6 classes of ids is too large .at most 0 entries"):
        build_token_dfa(automaton, tokenizer, max_states=0)
    with pytest.raises(UserError, match="the choice 'a.udc80' is not UTF-8"):
        strings_to_dfa(["b", "a\udc80"])
    with pytest.raises(UserError, match="over 20,000 states, one for each beginning of a choice"):
        strings_to_dfa(f"{number} is a choice" for number in range(10**9))
