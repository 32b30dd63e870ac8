"""`jaxlm prompt D --task MODULE:NAME`: the accuracy of a model that sees examples in its prompt, by their number."""

import contextlib
from pathlib import Path
from statistics import fmean
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.experiments import load_object
from jaxlm.cli.options import experiment_with_options, load_pipeline, read_constraint, workdir_parser
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError, int_at_least


def main(argv: list[str]) -> int:
    """Write a JSON line for each number of shots and seed, and a table to stderr."""
    options = _parser().parse(argv)
    is_choice = options.kind == "choice"
    constraint: Any = read_constraint(options)
    if (constraint and is_choice) or (options.calibrate != "none" and not is_choice):
        raise UsageError(f"--kind {options.kind}: answers are constrained, choices are calibrated, not the reverse")
    experiment = experiment_with_options(options)
    if not experiment.task.input_kind:
        raise UsageError(f"prompt: the task {type(experiment.task).__name__} gives no text a probability")
    from jaxlm.pipeline.prompting import PLAIN_TEXT, PromptedModel, PromptEvaluation
    from jaxlm.report.figures import curves_figure, figure_to_svg
    from jaxlm.tasks.prompting import Prompted

    task = load_object(options.task, Prompted)
    if is_choice and not task.choices:
        raise UsageError(f"--task {options.task} has no choices: choose --kind generate, or add them")
    name, curve = "accuracy" if is_choice else "exact_match", dict[int, float]()
    # Before the work: matplotlib may be missing.
    figure = curves_figure(f"{name}, {options.task}", {}) if options.figure else None
    pipeline = load_pipeline(options, experiment)
    model = PromptedModel(pipeline, pipeline.chat_format().template if options.template == "chat" else PLAIN_TEXT)
    evaluate = PromptEvaluation(model, task, options.kind, options.calibrate, constraint, options.limit)
    where = {key: str(getattr(options, key)) for key in ("workdir", "task", "kind", "template", "calibrate")}
    with options.out.open("w", encoding="utf-8") if options.out else contextlib.nullcontext() as file:
        for shots in options.shots:
            records = []
            for seed in range(options.seeds if shots else 1):  # without shots there is nothing to draw
                clock, figures = output.Clock(), evaluate(shots, seed)
                records.append(where | figures | clock.rates(figures["lines"]))
                line = output.json_line(records[-1])
                print(line, file=file, flush=True) if file else output.write_line(line)
            curve[shots], error = (fmean(record[key] for record in records) for key in (name, "standard_error"))
            output.print_stderr(f"{shots:5} shots: {name} {curve[shots]:.3f} ± {error:.3f}")
    if figure:
        figure.axes[0].plot(list(curve), list(curve.values()), marker="o")
        figure.axes[0].set_xlabel("shots")
        options.figure.write_text(figure_to_svg(figure), encoding="utf-8")
    return 0


def _parser() -> CommandParser:
    parser = workdir_parser("prompt", COMMANDS["prompt"], "constraint", "model")
    text = "a jaxlm.Prompted, or a function that returns one: module:name or file.py:name"
    parser.add_argument("--task", required=True, metavar="MODULE:NAME", help=text)
    text = "numbers of shots, separated by commas (default: 0,1,2,4,8)"
    parser.add_argument("--shots", type=_parse_shots, default=(0, 1, 2, 4, 8), metavar="LIST", help=text)
    parser.add_int("--seeds", "seeds that draw the shots, from 0 on", default=1)
    text = "score the choices of the task, or generate an answer by greedy search (default: choice)"
    parser.add_argument("--kind", choices=("choice", "generate"), default="choice", help=text)
    text = "correct the choices by inputs without content, or by their mean over the rows (default: none)"
    parser.add_argument("--calibrate", choices=("none", "context", "batch"), default="none", help=text)
    text = "prompts as plain text, or in the model's chat template, a shot a turn and its answer (default: plain)"
    parser.add_argument("--template", choices=("plain", "chat"), default="plain", help=text)
    parser.add_int("--limit", "rows of the test part, chosen by hash (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON lines to FILE (default: to stdout)")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the accuracy by the number of shots, as SVG")
    return parser


def _parse_shots(text: str) -> list[int]:
    return sorted({int_at_least(0)(part) for part in text.split(",")})
