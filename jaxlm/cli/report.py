"""`jaxlm report D [D...]`: one HTML page about one run or several, with nothing to load from elsewhere."""

import sys
from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.trained import open_run, workdir_parser
from jaxlm.cli.usage import VERBS, Usage, whole
from jaxlm.errors import UserError


def main(argv: list[str]) -> int:
    """Write the page; its path is the last line of stdout."""
    parser = workdir_parser("report", VERBS["report"] + ": curves, scores, samples, gradients, attention.")
    parser.add_argument("more", nargs="*", type=Path, metavar="WORKDIR", help="further runs, to compare with")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the first workdir")
    text = "answers of each run that are shown"
    parser.add_argument("--samples", type=whole(0), default=5, metavar="N", help=f"{text} (default: 5)")
    text = "draw the norm of d loss at T / d hidden state at t against T - t: vanishing gradients"
    parser.add_argument("--flow", action="store_true", help=text)
    text = "draw what each token of the answer to this text looked at (may be given several times)"
    parser.add_argument("--attention", action="append", default=[], metavar="TEXT", help=text)
    text = "of a model that only reads: the layer whose heads are drawn, from 1 (default: the last)"
    parser.add_argument("--layer", type=whole(1), metavar="K", help=text)
    parser.add_argument("--head", type=whole(1), metavar="K", help="only this head of it, from 1 (default: all)")
    options = parser.parse(argv)
    folders = [options.workdir, *options.more]
    for folder in folders:
        if not (folder / "experiment.json").is_file():
            raise UserError(f"{folder} is no workdir: it has no experiment.json")
    if options.out and not options.out.parent.is_dir():
        raise Usage(f"--out {options.out}: there is no folder {options.out.parent}")
    texts, options.attention = options.attention, None  # the search's own option of that name is for `predict`
    from jaxlm.report.page import page
    from jaxlm.report.run import Run

    runs = []
    for folder in folders:
        options.workdir = folder
        output.note(f"reading {folder}")
        runs.append(
            Run(folder, open_run(options), options.samples, options.flow, tuple(texts), options.layer, options.head)
        )
    out = options.out or folders[0] / "report.html"
    out.write_text(page(runs), encoding="utf-8")
    output.emit(str(out))
    sys.stdout.flush()
    return 0
