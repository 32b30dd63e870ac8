"""`jaxlm score D < in`: log-probability and tokens of each line's text, a line each; perplexity of all on stderr."""

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any

from jaxlm.cli import output
from jaxlm.cli.options import add_model_options, experiment_with_options, load_trained, workdir_parser
from jaxlm.cli.parser import CommandParser, UsageError
from jaxlm.cli.stdin_lines import StdinLines
from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.inference.score import TextScore

MAX_TEXT_TOKENS = 4096
"""Tokens of a line that a language model scores."""

SCORE_SUMMARY = """Log-probabilities of standard input, whose lines are SOURCE<TAB>TARGET: for each line the natural
log of p(TARGET, end | SOURCE), a TAB,
and the number of tokens. The end-of-text token (EOS) is counted in both. For a language
model a line is a text, and EOS counts if the texts that it learnt from had one."""


def main(argv: list[str]) -> int:
    """Score standard input, chunk by chunk."""
    options = _parser().parse(argv)
    run = experiment_with_options(options)
    if not run.task.input_kind:
        raise UsageError(f"score: the task {type(run.task).__name__} gives no text a probability")
    trained = load_trained(options, run)
    from jaxlm.inference.score import score_pairs

    source, clock = StdinLines(options.on_bad_line), output.Clock()
    logprob, tokens, cut = 0.0, 0, 0
    positions, longest = _score_limits(run.task)
    for lines in source.batches():
        first = source.num_lines - len(lines) + 1
        alone = run.task.input_kind == "text"
        pairs = [(None, line) if alone else _split_pair(line, first + index) for index, line in enumerate(lines)]
        for found in score_pairs(trained, pairs, positions, longest, run.task.append_eos):
            output.write_line(_score_line(found, options))
            logprob, tokens, cut = logprob + found.logprob, tokens + found.tokens, cut + found.truncated
        sys.stdout.flush()
    if cut:
        output.print_stderr(f"{cut:,} lines had a side of more than {longest} tokens: only its beginning was scored")
    if tokens:
        counted = " (EOS counted)" if run.task.append_eos else ""
        perplexity = math.exp(min(-logprob / tokens, 700.0))
        output.print_stderr(f"perplexity {perplexity:.4f}: {tokens:,} tokens{counted}, log-probability {logprob:.4f}")
    output.print_stderr(clock.summary(source.num_lines))
    return 0


def _parser() -> CommandParser:
    parser = workdir_parser("score", SCORE_SUMMARY)
    text = "also each token's: after another TAB, separated by spaces; with --jsonl under token_logprobs, with pieces"
    parser.add_argument("--per-token", action="store_true", help=text)
    text = (
        "one JSON object a line: source, text, logprob (natural log, summed), tokens (EOS in both as above), truncated"
    )
    parser.add_argument("--jsonl", action="store_true", help=text)
    text = "a line that is not UTF-8: stop (the default), or put U+FFFD for its bad bytes"
    parser.add_argument("--on-bad-line", choices=("error", "replace"), default="error", help=text)
    add_model_options(parser)
    return parser


def _score_limits(task: Any) -> tuple[int, int]:
    """Positions of a batch, and the most tokens of a text."""
    return (
        (task.search.batch_tokens, task.search.max_source_len)
        if task.search is not None
        else (task.batch_tokens, MAX_TEXT_TOKENS)
    )


def _split_pair(line: str, number: int) -> tuple[str, str]:
    sides = line.split("\t")
    if len(sides) != 2:
        raise UserError(
            f"standard input, line {number}: {len(sides) - 1} TABs, expected one, between source and target: {line:.60}"
        )
    return sides[0], sides[1]


def _score_line(found: "TextScore", options: argparse.Namespace) -> str:
    if options.jsonl:
        record: dict[str, Any] = {"source": found.source, "text": found.text}
        record |= {"logprob": found.logprob, "tokens": found.tokens, "truncated": found.truncated}
        if options.per_token:
            record |= {"token_logprobs": found.token_logprobs, "pieces": found.pieces}
        return output.json_line(record)
    tail = "\t" + " ".join(f"{x:.4f}" for x in found.token_logprobs) if options.per_token else ""
    return f"{found.logprob:.4f}\t{found.tokens}{tail}"
