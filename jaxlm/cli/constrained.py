"""The options that say what generated text must be: an expression, choices, a JSON schema, quotations."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.cli.usage import Parser, Usage
from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.data.text_rule import TextRule


def add_rule_options(parser: Parser) -> None:
    """At most one kind of rule may be given."""
    rules = parser.add_argument_group("what the text must be (at most one kind)")
    text = "the whole text matches R, an expression of Python's re (no look-around, no back-references)"
    rules.add_argument("--regex", metavar="R", help=text)
    text = "the text is one of those given (any number of times)"
    rules.add_argument("--choice", action="append", default=[], metavar="TEXT", help=text)
    rules.add_argument("--choices", type=Path, metavar="FILE", help="the text is a line of FILE, or a --choice")
    rules.add_argument("--json-schema", type=Path, metavar="FILE", help="the text is JSON that this schema admits")
    text = "what stands between the tokens OPEN and CLOSE is copied from the source, or the prompt"
    rules.add_argument("--quote", nargs=2, metavar=("OPEN", "CLOSE"), help=text)


def read_rule(options: argparse.Namespace) -> "TextRule | None":
    """The rule that is asked for, if any, without JAX. Raises Usage where it is wrong, or where there are several."""
    choices = bool(options.choice or options.choices)
    asked = {
        "--regex": options.regex is not None,
        "--choice": choices,
        "--json-schema": options.json_schema is not None,
    }
    given = [name for name, there in {**asked, "--quote": options.quote is not None}.items() if there]
    if len(given) > 1:
        raise Usage(f"{given[0]} and {given[1]}: expected at most one kind of rule for the text")
    if not given:
        return None
    from jaxlm.data import text_rule
    from jaxlm.data.text import read_lines

    try:
        if options.regex is not None:
            return text_rule.matching(options.regex)
        if options.json_schema is not None:
            return text_rule.json_of(options.json_schema)
        if options.quote is not None:
            return text_rule.quoting(*options.quote)
        lines = read_lines(options.choices.absolute()) if options.choices else []
        return text_rule.one_of([*options.choice, *lines])
    except UserError as error:
        raise Usage(f"{given[0]}: {error}") from error
