"""`jaxlm generate D --prompt TEXT`: sampled texts, each printed as soon as it is there; on a terminal, as it comes."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.constrained import add_rule_options, read_rule
from jaxlm.cli.trained import add_model_options, open_run, read_experiment, workdir_parser
from jaxlm.cli.usage import VERBS, Parser, Usage, whole


def main(argv: list[str]) -> int:
    """Print the samples of each prompt in turn."""
    options = _parser().parse(argv)
    prompts = list(options.prompt)
    if options.file is not None:
        from jaxlm.data.text import read_lines

        prompts += read_lines(options.file.absolute())
    if not prompts:
        raise Usage("expected a prompt: give --prompt TEXT (any number of times) or --file FILE")
    rule = read_rule(options)
    from jaxlm.decode.choose import Sampler

    sampler = Sampler(options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty)
    run = read_experiment(options)
    if not run.task.prompts:
        raise Usage(f"generate: the task {type(run.task).__name__} writes no text (`jaxlm predict` answers lines)")
    trained = open_run(options, run)
    from jaxlm.tasks.constrained import compiled
    from jaxlm.tasks.generate import Request, continuations, sample_answers
    from jaxlm.tasks.translate import one_line

    kept: Any = compiled(rule, trained.tokenizer) if rule else None
    request = Request(sampler, options.seed, options.num_samples, options.max_tokens, tuple(options.stop), kept)
    parts = trained.experiment.model, trained.params, trained.tokenizer, prompts
    live = options.num_samples == 1 and not options.jsonl and (options.stream or sys.stdout.isatty())
    show = _show if live else None
    if run.task.prompts == "source":
        samples = sample_answers(*parts, run.task.search, request, show)
    else:
        samples = continuations(*parts, request, show)
    for sample in samples:
        if live:
            output.emit("")  # the text is there already
        else:
            output.emit(output.to_json(dataclasses.asdict(sample)) if options.jsonl else one_line(sample.text))
        sys.stdout.flush()
    return 0


def _show(piece: str) -> None:
    sys.stdout.buffer.write(piece.encode(errors="replace"))
    sys.stdout.flush()


def _parser() -> Parser:
    note = "Line breaks of a text become spaces, but with --stream or --jsonl.\n"
    note += "Same seed, same text: a sample depends on the model, the seed, its prompt and its number, and on no other."
    parser = workdir_parser(
        "generate", VERBS["generate"] + ". The prompt of a translation model is its source.\n" + note
    )
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    parser.add_argument("--file", type=Path, metavar="FILE", help="prompts, one a line")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="0 is greedy search (default: 1)")
    parser.add_argument("--top-k", type=whole(0), default=0, metavar="K", help="from the K most probable (0: all)")
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
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="(default: 0)")
    text = "the most tokens of a text (default: the limit of the experiment's search)"
    parser.add_argument("--max-tokens", type=whole(1), metavar="N", help=text)
    parser.add_argument("--num-samples", type=whole(1), default=1, metavar="N", help="of each prompt (default: 1)")
    text = "one JSON object a sample: prompt, text, logprob (at this temperature), tokens, reason"
    parser.add_argument("--jsonl", action="store_true", help=text)
    add_rule_options(parser)
    add_model_options(parser)
    return parser
