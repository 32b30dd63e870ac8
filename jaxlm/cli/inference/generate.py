"""`jaxlm generate D --prompt TEXT`: sampled texts, each printed as soon as it is complete; on a terminal, by token."""

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.options import experiment_with_options, load_pipeline, read_constraint, workdir_parser
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError
from jaxlm.cli.stdin_lines import MEGABYTE, StdinLines, add_line_limit_option
from jaxlm.config.checks import MAX_SEED


def main(argv: list[str]) -> int:
    """Print the samples of each prompt in turn."""
    options = _parser().parse(argv)
    prompts = list(options.prompt)
    if options.file is not None:
        from jaxlm.data.files import read_lines

        prompts += read_lines(options.file.absolute(), max_bytes=options.max_line_mb * MEGABYTE)
    if options.multi_turn and (not options.chat or options.num_samples > 1):
        raise UsageError("--multi-turn is one dialogue: add --chat, and leave --num-samples out")
    if not prompts and not options.multi_turn:
        raise UsageError("expected a prompt: give --prompt TEXT (any number of times) or --file FILE")
    if options.system is not None and not options.chat:
        raise UsageError("--system is the first turn of a dialogue: add --chat")
    constraint: Any = read_constraint(options)
    experiment = experiment_with_options(options)
    if not experiment.task.input_kind:
        task = type(experiment.task).__name__
        raise UsageError(f"generate: the task {task} writes no text (`jaxlm predict` answers lines)")
    pipeline = load_pipeline(options, experiment)
    from jaxlm.inference.base import to_single_line
    from jaxlm.inference.generate import GenerationRequest

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    sampler = dataclasses.replace(pipeline.generation_defaults.sampler, **given)
    limits = options.num_samples, options.max_tokens, tuple(options.stop)
    chat: Any = pipeline.chat_format(options.system or "") if options.chat else None
    request = GenerationRequest(sampler, options.seed, *limits, constraint, chat)
    live = options.num_samples == 1 and not options.jsonl and (options.stream or sys.stdout.isatty())
    on_text, truncated = _print_piece if live else None, set()
    if options.multi_turn:
        lines = itertools.chain.from_iterable(StdinLines(max_line_bytes=options.max_line_mb * MEGABYTE).batches())
        samples = pipeline.chat(prompts or lines, request, on_text)
    else:
        samples = pipeline.generate_stream(prompts, request, on_text)
    for sample in samples:
        truncated |= {sample.prompt} if sample.truncated else set()
        plain = to_single_line(sample.text, strip=False)
        text = output.json_line(dataclasses.asdict(sample)) if options.jsonl else plain
        output.write_line("" if live else text)  # live: the text has been printed
        sys.stdout.flush()
    if truncated:
        output.print_stderr(f"{len(truncated):,} prompts were longer than the model reads: a part of them was left out")
    return 0


def _print_piece(piece: str) -> None:
    sys.stdout.buffer.write(piece.encode(errors="replace"))
    sys.stdout.flush()


def _parser() -> CommandParser:
    note = "\n\nThe prompt of a translation model is its source. Line breaks in a text become spaces, except with\n"
    note += "--stream or --jsonl. A sample depends only on the model, the seed, its prompt and its number.\n"
    note += "An imported model may come with other defaults of its own (generation_config.json)."
    parser = workdir_parser("generate", COMMANDS["generate"] + note, "constraint", "model")
    parser.add_list("--prompt", "prompt")
    parser.add_argument("--file", type=Path, metavar="FILE", help="file of prompts, one per line")
    add_line_limit_option(parser)
    parser.add_flag("--chat", "the prompts are turns of a user: put the model's chat template around them")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the system turn before each prompt")
    text = "with --chat: the prompts, or without any the lines of standard input, are the user's turns of one dialogue"
    parser.add_flag("--multi-turn", text)
    parser.add_float("--temperature", "softmax temperature; 0 is greedy decoding (default: 1)")
    parser.add_int("--top-k", "sample from the K most probable tokens, 0 for all", minimum=0, metavar="K")
    text = "sample from the fewest tokens whose probabilities sum to P (default: 1, all)"
    parser.add_float("--top-p", text, metavar="P")
    text = "sample from the tokens with at least P times the highest probability (default: 0, all)"
    parser.add_float("--min-p", text, metavar="P")
    text = "lower the logits of tokens that occurred before, by the factor R (default: 1, off; 1.1 to 1.3 is usual)"
    parser.add_float("--repetition-penalty", text, metavar="R")
    parser.add_list("--stop", "end a text before the first occurrence of this string")
    text = "print each token as it is generated, also if stdout is not a terminal (one sample per prompt, no --jsonl)"
    parser.add_flag("--stream", text)
    parser.add_int("--seed", "random seed", minimum=0, default=0, maximum=MAX_SEED)
    parser.add_int("--max-tokens", "maximum number of tokens of a text (default: the limit of the experiment's search)")
    parser.add_int("--num-samples", "samples per prompt", default=1)
    text = "print one JSON object per sample: prompt, text, logprob (at this temperature), tokens, reason (of its end)"
    parser.add_flag("--jsonl", text)
    return parser
