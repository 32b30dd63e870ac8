"""What generated text must be, before a tokenizer is known: built, and refused, without JAX."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.token_bytes import get_token_bytes
from jaxlm.errors import UserError
from jaxlm.grammar.byte_dfa import ByteDFA, strings_to_dfa
from jaxlm.grammar.json_schema import schema_to_regex
from jaxlm.grammar.regex import regex_to_dfa


@dataclass(frozen=True)
class Constraint:
    """Either an automaton that the whole text follows, or the two marks between which the source is quoted.

    description: names the rule in messages.
    """

    description: str
    automaton: ByteDFA | None = None
    delimiters: tuple[str, str] | None = None


def regex(pattern: str) -> Constraint:
    """Texts that match a regular expression as a whole. Raises UserError where it is wrong or not supported."""
    return Constraint("the expression", regex_to_dfa(pattern))


def choices(texts: Sequence[str]) -> Constraint:
    """One of some texts. Raises UserError if there is none."""
    return Constraint("the choices", strings_to_dfa(texts))


def json_schema(file: Path) -> Constraint:
    """JSON that a schema admits. Raises UserError, with file and line, if it is no JSON or cannot be followed."""
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise UserError(f"{file}: nested too deeply to be a schema") from error
    try:
        return Constraint("the JSON schema", regex_to_dfa(schema_to_regex(schema)))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def copy_from_source(opening: str, closing: str) -> Constraint:
    """What stands between the marks is copied from the source. Raises UserError if they are equal or empty."""
    if opening == closing or not opening or not closing:
        raise UserError(f"the marks {opening!r} and {closing!r}: expected two that differ, as in '<q>' '</q>'")
    return Constraint("the quotation", delimiters=(opening, closing))


def delimiter_id(tokenizer: Tokenizer, delimiter: str) -> int:
    """The id that writes a mark. Raises UserError if it takes more than one."""
    known = get_token_bytes(tokenizer)
    for table in (known.rest, known.initial):
        for index, text in enumerate(table):
            if text == delimiter.encode(errors="surrogatepass"):
                return index
    raise UserError(
        f"the mark {delimiter!r} is not one token of this tokenizer ({type(tokenizer).__name__}, "
        f"{tokenizer.vocab_size:,} ids): "
        "take a mark that is, or train with one that has it, as in "
        f"SentencePiece(user_defined_symbols=({delimiter!r}, ...))"
    )
