"""`jaxlm score D < in`: log-probability and tokens of each line's text, a line each; perplexity of all on stderr."""

import argparse
import itertools
import sys
from typing import TYPE_CHECKING, Any

from jaxlm.cli import output
from jaxlm.cli.options import experiment_with_options, load_pipeline, workdir_parser
from jaxlm.cli.parser import CommandParser, UsageError
from jaxlm.cli.stdin_lines import MEGABYTE, StdinLines, add_stdin_options
from jaxlm.errors import UserError
from jaxlm.metrics.text import perplexity

if TYPE_CHECKING:
    from jaxlm.inference.score import TextScore

SCORE_SUMMARY = """compute log-probabilities of the lines SOURCE<TAB>TARGET of standard input

Each output line is the natural log of p(TARGET, EOS | SOURCE), a TAB, and the number of tokens, EOS
included. For a language model a line is one text, and EOS is included if the training texts ended
with it."""


def main(argv: list[str]) -> int:
    """Score standard input, chunk by chunk."""
    options = _parser().parse(argv)
    experiment = experiment_with_options(options)
    task = experiment.task
    if not task.input_kind:
        raise UsageError(f"score: the task {type(task).__name__} gives no text a probability")
    pipeline = load_pipeline(options, experiment)
    source, clock = StdinLines(options.on_bad_line, max_line_bytes=options.max_line_mb * MEGABYTE), output.Clock()
    logprob, num_tokens, num_truncated = 0.0, 0, 0
    for lines in source.batches():
        first = source.num_lines - len(lines) + 1
        is_text = task.input_kind == "text"
        texts: Any = lines if is_text else list(map(_split_pair, lines, itertools.count(first)))
        for score in pipeline.score(texts):
            output.write_line(_format_score(score, options))
            logprob += score.logprob
            num_tokens += score.tokens
            num_truncated += score.truncated
        sys.stdout.flush()
    if num_truncated:
        limit = f"{pipeline.max_score_tokens} of a side: only the beginning was scored"
        output.print_stderr(f"{num_truncated:,} lines had more tokens than are read, {limit}")
    if num_tokens:
        counted = " (EOS counted)" if task.append_eos else ""
        figures = f"{num_tokens:,} tokens{counted}, log-probability {logprob:.4f}"
        output.print_stderr(f"perplexity {perplexity(-logprob / num_tokens):.4f}: {figures}")
    output.print_stderr(clock.summary(source.num_lines))
    return 0


def _parser() -> CommandParser:
    parser = workdir_parser("score", SCORE_SUMMARY, "model")
    text = "also print the log-probability of each token, after another TAB, separated by spaces; with --jsonl in the "
    text += "field token_logprobs, with the tokens in the field pieces"
    parser.add_flag("--per-token", text)
    parser.add_flag("--jsonl", "print one JSON object per line: source, text, logprob (natural log), tokens, truncated")
    add_stdin_options(parser)
    return parser


def _split_pair(line: str, number: int) -> tuple[str, str]:
    sides = line.split("\t")
    if len(sides) != 2:
        problem = f"{len(sides) - 1} TABs, expected one, between source and target"
        raise UserError(f"standard input, line {number}: {problem}: {line:.60}")
    return sides[0], sides[1]


def _format_score(score: "TextScore", options: argparse.Namespace) -> str:
    if options.jsonl:
        record: dict[str, Any] = {"source": score.source, "text": score.text}
        record |= {"logprob": score.logprob, "tokens": score.tokens, "truncated": score.truncated}
        if options.per_token:
            record |= {"token_logprobs": score.token_logprobs, "pieces": score.pieces}
        return output.json_line(record)
    tail = "\t" + " ".join(f"{logprob:.4f}" for logprob in score.token_logprobs) if options.per_token else ""
    return f"{score.logprob:.4f}\t{score.tokens}{tail}"
