"""`jaxlm predict D < in > out`: a line of output for each line of input, in order.

JSON lines: {"source", "prediction", "score", "logprob", "hypotheses": [{"text", "score", "logprob", "tokens",
"reason"}, ...]}, where logprob is a natural log with EOS counted and score is what the beam ranks by. With --attention
also "attention": {"source": pieces, "target": pieces, "weights": a row for each target piece}. Tasks that do not search
have fields of their own after "source" and "prediction".
"""

import sys

from jaxlm.cli import output
from jaxlm.cli.options import experiment_with_options, load_pipeline, read_constraint, workdir_parser
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError
from jaxlm.cli.stdin_lines import LINES_PER_BATCH, MEGABYTE, StdinLines, add_stdin_options, count_truncated
from jaxlm.trees.reader import parse_tree


def main(argv: list[str]) -> int:
    """Answer standard input, chunk by chunk."""
    options = _parser().parse(argv)
    if options.attention and not options.jsonl:
        raise UsageError("--attention needs --jsonl: the weights are a field of the JSON object")
    constraint, clock = read_constraint(options), output.Clock()
    experiment = experiment_with_options(options)
    if constraint and experiment.task.search is None:
        raise UsageError(f"the task {type(experiment.task).__name__} does not search: its text cannot be constrained")
    pipeline = load_pipeline(options, experiment)
    if constraint:
        pipeline = pipeline.constrain(constraint)
    task = pipeline.experiment.task
    if options.pretty and not hasattr(task, "best_trees"):
        raise UsageError(f"--pretty draws trees, and the task {type(task).__name__} predicts none: leave it out")
    limit = task.max_input_tokens(pipeline.model)
    num_tokens = num_unknown = num_truncated = 0
    source = StdinLines(options.on_bad_line, options.lines_per_batch, options.max_line_mb * MEGABYTE, prompt="> ")
    hint = " from the terminal; Ctrl-D ends them" if sys.stdin is not None and sys.stdin.isatty() else ""
    output.print_stderr(f"checkpoints {pipeline.steps} loaded in {clock.seconds:.1f} s; reading lines{hint}")
    clock = output.Clock()
    flat: list[int] = []
    for lines in source.batches():
        for number, answer in enumerate(answers := pipeline.answers(lines), start=source.num_lines - len(lines) + 1):
            flat += [number] * answer.json.get("flat", False)
            text = parse_tree(answer.text).indented() if options.pretty and answer.text else answer.text
            output.write_line(output.json_line(answer.json) if options.jsonl else text)
        sys.stdout.flush()
        if limit:
            num_truncated += count_truncated(lines, pipeline.tokenizer, limit, with_markers=task.search is None)
        texts = [" ".join(a.json.get("words", ())) or line for a, line in zip(answers, lines, strict=True)]  # raw text
        for ids in pipeline.tokenizer.encode(texts):
            num_tokens += len(ids)
            num_unknown += int(pipeline.tokenizer.special.is_unknown(ids).sum())
    if num_unknown:
        unknown = f"{num_unknown:,} of {num_tokens:,} tokens are unknown to the tokenizer"
        output.print_stderr(f"{unknown}: they were not in the training data")
    if flat:
        output.print_stderr(f"{len(flat):,} lines are too long for the model and got a flat tree: {flat[:20]}")
    if num_truncated:
        output.print_stderr(f"{num_truncated:,} lines were longer than {limit} tokens and were cut there")
    if source.read_stats.replaced:
        output.print_stderr(f"{source.read_stats.replaced:,} lines were not UTF-8: their bad bytes became U+FFFD")
    output.print_stderr(clock.summary(source.num_lines))
    return 0


def _parser() -> CommandParser:
    parser = workdir_parser("predict", COMMANDS["predict"] + ", in order", "search", "constraint", "model")
    text = "print the N best answers, separated by TABs; with --jsonl in the field `hypotheses`"
    parser.add_int("--n-best", text, default=1)
    text = "print one JSON object per line: source, prediction, score, logprob (natural log, EOS included), hypotheses"
    parser.add_flag("--jsonl", text)
    parser.add_flag("--pretty", "of a parser: draw each tree in indented lines")
    text = "with --jsonl: add the attention weights of each token of the best answer over the tokens of the source"
    parser.add_flag("--attention", text)
    text = "of a tagger: the lines are raw text, split into words at the word boundaries of Unicode; print word/tag"
    parser.add_flag("--split-words", text)
    add_stdin_options(parser)
    text = "maximum number of lines to read before they are answered"
    parser.add_int("--lines-per-batch", text, default=LINES_PER_BATCH)
    return parser
