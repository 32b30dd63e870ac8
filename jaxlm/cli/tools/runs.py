"""`jaxlm runs [DIR]`: a table of the runs in a folder, the newest first."""

import shutil
import sys
from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError
from jaxlm.filesystem import write_atomic


def main(argv: list[str]) -> int:
    """Print the table."""
    parser = CommandParser("runs", COMMANDS["runs"])
    parser.add_argument("folder", metavar="DIR", type=Path, nargs="?", default=Path("runs"), help="(default: runs)")
    parser.add_flag("--best", "the best run first (default: the newest)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the table as CSV")
    options = parser.parse(argv)
    from jaxlm.report.run_table import csv_text, find_workdirs, flat_rows, format_table, summarize_runs

    folders = find_workdirs(options.folder)
    if not folders:
        raise UsageError(f"no run in {options.folder}: name the folder of the workdirs")
    rows = summarize_runs(folders, options.folder, options.best)
    output.write_line(format_table(rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    if options.csv:
        write_atomic(options.csv, csv_text(flat_rows(rows)))
    return 0
