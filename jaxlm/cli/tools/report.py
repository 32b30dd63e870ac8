"""`jaxlm report D [D...]`: one self-contained HTML page that shows or compares runs."""

import sys
from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.options import load_pipeline, workdir_parser
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError
from jaxlm.workdir import Workdir


def main(argv: list[str]) -> int:
    """Write the page; its path is the last line of stdout."""
    options = _parser().parse(argv)
    folders = [options.workdir, *options.other_workdirs]
    for folder in folders:
        Workdir(folder).check()
    if options.out and not options.out.parent.is_dir():
        raise UsageError(f"--out {options.out}: the folder {options.out.parent} does not exist")
    texts, options.attention = options.attention, None  # `predict` has a search option of that name
    from jaxlm.report.html import render_html
    from jaxlm.report.run_summary import RunSummary

    runs = []
    for folder in folders:
        options.workdir = folder
        output.print_stderr(f"reading {folder}")
        shown = options.num_examples, options.gradient_flow, tuple(texts), options.layer, options.head
        runs.append(RunSummary(Workdir(folder), load_pipeline(options), *shown))
    out = options.out or folders[0] / "report.html"
    out.write_text(render_html(runs), encoding="utf-8")
    output.write_line(str(out))
    sys.stdout.flush()
    return 0


def _parser() -> CommandParser:
    parser = workdir_parser("report", COMMANDS["report"] + ": curves, scores, examples, gradients, attention")
    parser.add_argument("other_workdirs", nargs="*", type=Path, metavar="WORKDIR", help="further runs to compare")
    text = "the page to write (default: report.html in the first workdir)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    parser.add_int("--num-examples", "number of example answers per run", minimum=0, default=5)
    text = "plot the norm of the gradient d loss_T / d hidden state_t against T - t (vanishing gradients)"
    parser.add_flag("--gradient-flow", text)
    parser.add_list("--attention", "plot the attention weights for this text")
    text = "for an encoder: the layer whose attention is plotted, from 1 (default: the last)"
    parser.add_int("--layer", text, metavar="K")
    parser.add_int("--head", "head to plot, from 1 (default: all heads of the layer)", metavar="K")
    return parser
