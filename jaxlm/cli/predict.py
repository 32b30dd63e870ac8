"""`jaxlm predict D < in > out`: a line of output for each line of input, in order, whatever the line holds.

JSON lines: {"source", "prediction", "score", "logprob", "hypotheses": [{"text", "score", "logprob", "tokens",
"reason"}, ...]}, where logprob is a natural log with EOS counted and score is what the beam ranks by. With --attention
also "attention": {"source": pieces, "target": pieces, "weights": a row for each target piece}. Tasks that do not search
have fields of their own beside "source" and "prediction".
"""

import dataclasses
import sys
from typing import Any

import numpy as np

from jaxlm.cli import output
from jaxlm.cli.constrained import add_rule_options, read_rule
from jaxlm.cli.lines import CHUNK, Input, beyond
from jaxlm.cli.trained import add_model_options, add_search_options, open_run, workdir_parser
from jaxlm.cli.usage import VERBS, Parser, Usage, whole


def main(argv: list[str]) -> int:
    """Answer standard input, chunk by chunk."""
    options = _parser().parse(argv)
    if options.attention and not options.jsonl:
        raise Usage("--attention needs --jsonl: the weights are a field of the JSON object")
    rule, clock = read_rule(options), output.Clock()
    trained = open_run(options)
    task, loading = trained.experiment.task, clock.seconds
    if rule:
        task = _constrained(task, rule, trained.tokenizer)
    from jaxlm.data.vocabulary import UNK

    limit = task.cut_at(trained.experiment.model)

    words = unknown = 0
    source, cut, clock = Input(options.on_bad_line, options.chunk), 0, output.Clock()
    output.note(f"checkpoints {trained.steps} loaded in {loading:.1f} s; reading lines" + _hint())
    for lines in source.chunks():
        answers = task.predict(trained.experiment.model, trained.params, trained.tokenizer, lines)
        for answer in answers:
            output.emit(output.to_json(answer.record) if options.jsonl else answer.text)
        sys.stdout.flush()
        cut += beyond(lines, trained.tokenizer, limit, marked=task.search is None) if limit else 0
        ids = np.concatenate([np.zeros(0, np.int32), *trained.tokenizer.encode(lines)])
        words, unknown = words + len(ids), unknown + int((ids == UNK).sum())
    if unknown:
        output.note(f"{unknown:,} of {words:,} tokens are unknown to the tokenizer: it saw none such in training")
    if cut:
        output.note(f"{cut:,} lines were longer than {limit} tokens and were cut there")
    if source.bad.replaced:
        output.note(f"{source.bad.replaced:,} lines were not UTF-8: their bad bytes became U+FFFD")
    output.note(clock.sentence(source.count))
    return 0


def _parser() -> Parser:
    parser = workdir_parser("predict", VERBS["predict"] + ": N lines in, N lines out, in order.")
    add_search_options(parser)
    text = "the N best answers: separated by TABs, or under `hypotheses` with --jsonl"
    parser.add_argument("--n-best", type=whole(1), default=1, metavar="N", help=text)
    text = "one JSON object a line: source, prediction, score, logprob (natural log, EOS counted), hypotheses"
    parser.add_argument("--jsonl", action="store_true", help=text)
    text = "with --jsonl: how much each piece of the best answer looked at each piece of the source"
    parser.add_argument("--attention", action="store_true", help=text)
    text = "a line that is not UTF-8: stop (the default), or put U+FFFD for its bad bytes"
    parser.add_argument("--on-bad-line", choices=("error", "replace"), default="error", help=text)
    text = f"lines read at most before they are answered (default: {CHUNK})"
    parser.add_argument("--chunk", type=whole(1), default=CHUNK, metavar="N", help=text)
    add_rule_options(parser)
    add_model_options(parser)
    return parser


def _constrained(task: Any, rule: Any, tokenizer: Any) -> Any:
    """The task with a search that follows the rule. Raises Usage where it does not search."""
    if task.search is None:
        raise Usage(f"the task {type(task).__name__} does not search: no rule for its text can be kept")
    from jaxlm.tasks.constrained import constrained

    return dataclasses.replace(task, search=constrained(task.search, rule, tokenizer))


def _hint() -> str:
    return " from the terminal; Ctrl-D ends them" if sys.stdin is not None and sys.stdin.isatty() else ""
