"""`jaxlm generate D --prompt TEXT`: sampled texts, each printed as soon as it is complete; on a terminal, by token."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.options import (
    add_constraint_options,
    add_model_options,
    experiment_with_options,
    load_pipeline,
    read_constraint,
    workdir_parser,
)
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError, int_at_least


def main(argv: list[str]) -> int:
    """Print the samples of each prompt in turn."""
    options = _parser().parse(argv)
    prompts = list(options.prompt)
    if options.file is not None:
        from jaxlm.data.files import read_lines

        prompts += read_lines(options.file.absolute())
    if not prompts:
        raise UsageError("expected a prompt: give --prompt TEXT (any number of times) or --file FILE")
    constraint: Any = read_constraint(options)
    experiment = experiment_with_options(options)
    if not experiment.task.input_kind:
        task = type(experiment.task).__name__
        raise UsageError(f"generate: the task {task} writes no text (`jaxlm predict` answers lines)")
    pipeline = load_pipeline(options, experiment)
    from jaxlm.decode.sampling import Sampler
    from jaxlm.inference.generate import GenerationRequest
    from jaxlm.inference.translate import to_single_line

    sampler = Sampler(options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty)
    request = GenerationRequest(
        sampler, options.seed, options.num_samples, options.max_tokens, tuple(options.stop), constraint
    )
    live = options.num_samples == 1 and not options.jsonl and (options.stream or sys.stdout.isatty())
    samples = pipeline.generate_stream(prompts, request, _print_piece if live else None)
    for sample in samples:
        if live:
            output.write_line("")  # the text has been printed
        else:
            output.write_line(
                output.json_line(dataclasses.asdict(sample)) if options.jsonl else to_single_line(sample.text)
            )
        sys.stdout.flush()
    return 0


def _print_piece(piece: str) -> None:
    sys.stdout.buffer.write(piece.encode(errors="replace"))
    sys.stdout.flush()


def _parser() -> CommandParser:
    note = "Line breaks of a text become spaces, but with --stream or --jsonl.\n"
    note += "Same seed, same text: a sample depends on the model, the seed, its prompt and its number, and on no other."
    parser = workdir_parser(
        "generate", COMMANDS["generate"] + ". The prompt of a translation model is its source.\n" + note
    )
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    parser.add_argument("--file", type=Path, metavar="FILE", help="prompts, one a line")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="0 is greedy search (default: 1)")
    parser.add_argument(
        "--top-k", type=int_at_least(0), default=0, metavar="K", help="from the K most probable (0: all)"
    )
    text = "from the fewest tokens that reach this probability together (1: all)"
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help=text)
    text = "from the tokens with this share of the greatest probability (0: all)"
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help=text)
    text = "divides the scores of ids that were there already (1: off; 1.1 to 1.3 is usual)"
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help=text)
    text = "end a text where this comes, which is not printed (may be given several times)"
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help=text)
    text = "print a token at a time also where stdout is no terminal (one sample a prompt, no --jsonl)"
    parser.add_argument("--stream", action="store_true", help=text)
    parser.add_argument("--seed", type=int_at_least(0), default=0, metavar="N", help="(default: 0)")
    text = "the most tokens of a text (default: the limit of the experiment's search)"
    parser.add_argument("--max-tokens", type=int_at_least(1), metavar="N", help=text)
    parser.add_argument(
        "--num-samples", type=int_at_least(1), default=1, metavar="N", help="of each prompt (default: 1)"
    )
    text = "one JSON object a sample: prompt, text, logprob (at this temperature), tokens, reason"
    parser.add_argument("--jsonl", action="store_true", help=text)
    add_constraint_options(parser)
    add_model_options(parser)
    return parser
