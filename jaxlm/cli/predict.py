"""`jaxlm predict D < in > out`: a line of output for each line of input, in order, whatever the line holds.

JSON lines: {"source", "prediction", "score", "logprob", "hypotheses": [{"text", "score", "logprob", "tokens",
"reason"}, ...]}, where logprob is a natural log with EOS counted and score is what the beam ranks by.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from jaxlm.cli import report
from jaxlm.cli.lines import CHUNK, Input
from jaxlm.cli.trained import add_search_options, open_run, workdir_parser
from jaxlm.cli.usage import VERBS, Parser, whole


def main(argv: list[str]) -> int:
    """Answer standard input, chunk by chunk."""
    options = _parser().parse(argv)
    clock = report.Clock()
    trained = open_run(options)
    task, loading = trained.experiment.task, clock.seconds
    source, cut, clock = Input(options.on_bad_line, options.chunk), 0, report.Clock()
    report.note(f"checkpoints {trained.steps} loaded in {loading:.1f} s; reading lines" + _hint())
    show = _json if options.jsonl else _plain
    for lines in source.chunks():
        answers = task.predict(trained.experiment.model, trained.params, trained.tokenizer, lines)
        for line, hypotheses in zip(lines, answers, strict=True):
            report.emit(show(line, hypotheses))
        sys.stdout.flush()
        cut += _cut(lines, trained.tokenizer, task.search.max_source)
    if cut:
        report.note(f"{cut:,} lines were longer than {task.search.max_source} tokens and were cut there")
    if source.bad.replaced:
        report.note(f"{source.bad.replaced:,} lines were not UTF-8: their bad bytes became U+FFFD")
    report.note(clock.sentence(source.count))
    return 0


def _parser() -> Parser:
    parser = workdir_parser("predict", VERBS["predict"] + ": N lines in, N lines out, in order.")
    add_search_options(parser)
    text = "the N best answers: separated by TABs, or under `hypotheses` with --jsonl"
    parser.add_argument("--n-best", type=whole(1), default=1, metavar="N", help=text)
    text = "one JSON object a line: source, prediction, score, logprob (natural log, EOS counted), hypotheses"
    parser.add_argument("--jsonl", action="store_true", help=text)
    text = "a line that is not UTF-8: stop (the default), or put U+FFFD for its bad bytes"
    parser.add_argument("--on-bad-line", choices=("error", "replace"), default="error", help=text)
    text = f"lines read at most before they are answered (default: {CHUNK})"
    parser.add_argument("--chunk", type=whole(1), default=CHUNK, metavar="N", help=text)
    return parser


def _hint() -> str:
    return " from the terminal; Ctrl-D ends them" if sys.stdin.isatty() else ""


def _plain(line: str, hypotheses: Sequence[Any]) -> str:
    """The texts, separated by tabs; one text keeps the tabs that it has."""
    texts = [hypothesis.text for hypothesis in hypotheses]
    return texts[0] if len(texts) == 1 else "\t".join(text.replace("\t", " ") for text in texts)


def _json(line: str, hypotheses: Sequence[Any]) -> str:
    best = hypotheses[0]
    names = ("text", "score", "logprob", "tokens", "reason")
    found = [{name: dataclasses.asdict(item)[name] for name in names} for item in hypotheses if item.reason != "none"]
    record = {"source": line, "prediction": best.text, "score": best.score, "logprob": best.logprob}
    return report.to_json(record | {"hypotheses": found})


def _cut(lines: Sequence[str], tokenizer: Any, limit: int) -> int:
    """How many lines have more than `limit` tokens, EOS included. A token has a byte at least, so few are encoded."""
    long = [line for line in lines if line.strip() and len(line.encode(errors="replace")) + 2 > limit]
    return sum(len(ids) >= limit for ids in tokenizer.encode(long)) if long else 0
