"""`jaxlm report D [D...]`: one HTML page about one run or several, with nothing to load from elsewhere."""

import sys
from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.options import load_pipeline, workdir_parser
from jaxlm.cli.parser import COMMANDS, UsageError, int_at_least
from jaxlm.workdir import Workdir


def main(argv: list[str]) -> int:
    """Write the page; its path is the last line of stdout."""
    parser = workdir_parser("report", COMMANDS["report"] + ": curves, scores, samples, gradients, attention.")
    parser.add_argument("other_workdirs", nargs="*", type=Path, metavar="WORKDIR", help="further runs, to compare with")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the first workdir")
    text = "answers of each run that are shown"
    parser.add_argument("--num-examples", type=int_at_least(0), default=5, metavar="N", help=f"{text} (default: 5)")
    text = "draw the norm of d loss at T / d hidden state at t against T - t: vanishing gradients"
    parser.add_argument("--gradient-flow", action="store_true", help=text)
    text = "draw what each token of the answer to this text looked at (may be given several times)"
    parser.add_argument("--attention", action="append", default=[], metavar="TEXT", help=text)
    text = "of a model that only reads: the layer whose heads are drawn, from 1 (default: the last)"
    parser.add_argument("--layer", type=int_at_least(1), metavar="K", help=text)
    parser.add_argument("--head", type=int_at_least(1), metavar="K", help="only this head of it, from 1 (default: all)")
    options = parser.parse(argv)
    folders = [options.workdir, *options.other_workdirs]
    for folder in folders:
        Workdir(folder).check()
    if options.out and not options.out.parent.is_dir():
        raise UsageError(f"--out {options.out}: there is no folder {options.out.parent}")
    texts, options.attention = options.attention, None  # the search's own option of that name is for `predict`
    from jaxlm.report.html import render_html
    from jaxlm.report.run_summary import RunSummary

    runs = []
    for folder in folders:
        options.workdir = folder
        output.print_stderr(f"reading {folder}")
        runs.append(
            RunSummary(
                Workdir(folder),
                load_pipeline(options),
                options.num_examples,
                options.gradient_flow,
                tuple(texts),
                options.layer,
                options.head,
            )
        )
    out = options.out or folders[0] / "report.html"
    out.write_text(render_html(runs), encoding="utf-8")
    output.write_line(str(out))
    sys.stdout.flush()
    return 0
