"""Constraints on generated text, independent of a tokenizer; built and checked without JAX."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.token_bytes import get_token_bytes
from jaxlm.errors import UserError
from jaxlm.grammar.byte_dfa import MAX_STATES, NFA, ByteDFA, determinize, strings_to_dfa
from jaxlm.grammar.json_schema import SOURCE_WORDS, SchemaBuilder
from jaxlm.grammar.regex import regex_to_dfa
from jaxlm.grammar.schema_values import SchemaPlace
from jaxlm.grammar.source_dfa import HOLE, QUOTE
from jaxlm.json_files import read_json

MAX_SCHEMA_BYTES = 1 << 22


@dataclass(frozen=True)
class Constraint:
    """An automaton that accepts the whole text, or two marks between which text is copied from the source.

    description: the name of the constraint in messages.
    require_all: whether a tokenizer must be able to write each of the texts; the automaton is a tree.
    literals: parts of the texts that a tokenizer must be able to write.
    source_words: the most words of a string of the source (`jaxlm.grammar.source_dfa`); 0 if there is none.
    max_states: limit on the automaton, also after its conversion to the ids of a tokenizer.
    """

    description: str
    automaton: ByteDFA | None = None
    delimiters: tuple[str, str] | None = None
    require_all: bool = False
    literals: frozenset[str] = frozenset()
    source_words: int = 0
    max_states: int = MAX_STATES


def regex(pattern: str, max_states: int = MAX_STATES) -> Constraint:
    """Texts that fully match a regular expression. Raises UserError if it is invalid, too large or not supported."""
    return Constraint("the expression", regex_to_dfa(pattern, max_states), max_states=max_states)


def choices(texts: Iterable[str], max_states: int = MAX_STATES) -> Constraint:
    """One of the given texts. Raises UserError if there are none, or if they are too long or too many."""
    return Constraint("the choices", strings_to_dfa(texts, max_states), require_all=True, max_states=max_states)


def json_schema(file: Path, max_states: int = MAX_STATES) -> Constraint:
    """JSON that a schema admits. Raises UserError with the file if it is not JSON, too large or not supported."""
    schema = read_json(file, Any, "fix the schema", MAX_SCHEMA_BYTES)
    try:
        return schema_constraint(schema, max_states)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def schema_constraint(schema: Any, max_states: int = MAX_STATES) -> Constraint:
    """JSON that a schema, as a Python object, admits. Raises UserError if it is too large or not supported."""
    nfa = NFA(max_states)
    start, end = nfa.add_node(), nfa.add_node()
    builder = SchemaBuilder(nfa, schema)
    builder.add_value(schema, start, end, SchemaPlace())
    automaton, words = determinize(nfa, start, end), builder.source_words or {0}
    if len(words) > 1:
        raise UserError(f"JSON schema: {SOURCE_WORDS} of {sorted(words)}, expected one number in a schema")
    if ((automaton.next_QX[:, HOLE] >= 0) & (automaton.next_QX[:, QUOTE] >= 0)).any():
        raise UserError(
            f"JSON schema: a string with {SOURCE_WORDS} and another string may be at the same place: remove one"
        )
    literals = frozenset(builder.literals)
    return Constraint("the JSON schema", automaton, None, False, literals, max(words), max_states)


def copy_from_source(opening: str, closing: str) -> Constraint:
    """Text between the marks is copied from the source. Raises UserError if the marks are equal or empty."""
    if opening == closing or not opening or not closing:
        raise UserError(f"the marks {opening!r} and {closing!r}: expected two that differ, as in '<q>' '</q>'")
    return Constraint("the quotation", delimiters=(opening, closing))


def delimiter_id(tokenizer: Tokenizer, delimiter: str) -> int:
    """Return the id of a mark. Raises UserError if the mark is not a single token."""
    token_bytes = get_token_bytes(tokenizer)
    mark = delimiter.encode(errors="surrogatepass")
    for table in (token_bytes.rest, token_bytes.initial):
        if mark in table:
            return table.index(mark)
    raise UserError(
        f"the mark {delimiter!r} is not one token of this tokenizer ({type(tokenizer).__name__}, "
        f"{tokenizer.vocab_size:,} ids): choose a mark that is, or train with a tokenizer that contains it, as in "
        f"SentencePiece(user_defined_symbols=({delimiter!r}, ...))"
    )


def require_writable(literals: Iterable[str], tokenizer: Tokenizer, description: str) -> None:
    """Raises UserError for a part of a text that the tokenizer cannot write in any surroundings."""
    token_bytes = get_token_bytes(tokenizer)
    tokens = {text for table in (token_bytes.initial, token_bytes.rest) for text in table if text}
    longest = max(map(len, tokens), default=0)
    beginnings = {text[:length] for text in tokens for length in range(1, len(text) + 1)}
    endings = {text[length:] for text in tokens for length in range(len(text))}
    for literal in sorted(literals):
        text = literal.encode()
        # places in the literal that whole tokens reach; the first of them may begin before it
        reached = {0, *(length for length in range(1, min(longest, len(text)) + 1) if text[:length] in endings)}
        for place in range(len(text)):
            if place in reached:
                ends = range(place + 1, min(place + longest, len(text)) + 1)
                reached.update(end for end in ends if text[place:end] in tokens)
        last = any(text[place:] in beginnings for place in reached if place >= len(text) - longest)
        if not (last or len(text) in reached or any(text in token for token in tokens)):
            raise UserError(
                f"{description}: {literal[:80]} cannot be written by this tokenizer, which lacks some of its "
                "characters: remove it from the schema, or train with a tokenizer that has them"
            )
