"""What generated text must be, before a tokenizer is known: built, and refused, without JAX."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxlm.data.byte_automaton import ByteAutomaton, automaton_of_strings
from jaxlm.data.expression import automaton_of_expression
from jaxlm.data.json_schema import schema_expression
from jaxlm.data.surface import surfaces
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.errors import UserError


@dataclass(frozen=True)
class TextRule:
    """Either an automaton that the whole text follows, or the two marks between which the source is quoted.

    what: names the rule in messages.
    """

    what: str
    automaton: ByteAutomaton | None = None
    marks: tuple[str, str] | None = None


def matching(pattern: str) -> TextRule:
    """Texts that match a regular expression as a whole. Raises UserError where it is wrong or not supported."""
    return TextRule("the expression", automaton_of_expression(pattern))


def one_of(texts: Sequence[str]) -> TextRule:
    """One of some texts. Raises UserError if there is none."""
    return TextRule("the choices", automaton_of_strings(texts))


def json_of(file: Path) -> TextRule:
    """JSON that a schema admits. Raises UserError, with file and line, if it is no JSON or cannot be followed."""
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise UserError(f"{file}: nested too deeply to be a schema") from error
    try:
        return TextRule("the JSON schema", automaton_of_expression(schema_expression(schema)))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def quoting(opening: str, closing: str) -> TextRule:
    """What stands between the marks is copied from the source. Raises UserError if they are equal or empty."""
    if opening == closing or not opening or not closing:
        raise UserError(f"the marks {opening!r} and {closing!r}: expected two that differ, as in '<q>' '</q>'")
    return TextRule("the quotation", marks=(opening, closing))


def mark_id(tokenizer: Tokenizer, mark: str) -> int:
    """The id that writes a mark. Raises UserError if it takes more than one."""
    known = surfaces(tokenizer)
    for table in (known.later, known.first):
        for index, text in enumerate(table):
            if text == mark.encode(errors="surrogatepass"):
                return index
    raise UserError(
        f"the mark {mark!r} is not one token of this tokenizer ({type(tokenizer).__name__}, {tokenizer.size:,} ids): "
        f"take a mark that is, or train with one that has it, as in SentencePiece(symbols=({mark!r}, ...))"
    )
