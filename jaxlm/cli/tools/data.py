"""`jaxlm data list | get NAME... | check [NAME...]`: the data sets that the experiments read.

`get` fetches what the folder lacks, from the first address of the catalog that answers, continues where it was cut, and
checks every file. A data set that is not open asks once, or takes --accept-license. `check` compares the files on disk.
"""

import sys
from pathlib import Path

from jaxlm.cli.output import print_stderr
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError, did_you_mean
from jaxlm.data.catalog import DataSet, content_fault, default_folder, read_catalog
from jaxlm.data.download import get_file, missing_files
from jaxlm.errors import UserError
from jaxlm.filesystem import format_bytes

ACTIONS = ("list", "get", "check")


def main(argv: list[str]) -> int:
    """List, fetch or check data sets. Exit code 1 if a check finds a fault."""
    parser = CommandParser("data", COMMANDS["data"])
    parser.add_argument("action", choices=ACTIONS, help="list; get: fetch; check: compare files with the catalog")
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets (check: default those that are here)")
    text = "folder of all data sets (default: $JAXLM_DATA, else data/)"
    parser.add_argument("--folder", type=Path, metavar="D", help=text)
    parser.add_flag("--accept-license", "accept licenses that are not open: non-commercial ones, or none stated")
    options = parser.parse(argv)
    catalog, folder = read_catalog(), options.folder or default_folder()
    others = DataSet("a data set of tensorflow-datasets", "any", "that of its page", "unstated", tfds=True)
    catalog = {**catalog, **{name: others for name in options.names if "/" in name and name not in catalog}}
    if unknown := [name for name in options.names if name not in catalog]:
        near = did_you_mean(unknown[0], catalog)
        raise UsageError(f"no data set {unknown[0]!r} in the catalog{near} (`jaxlm data list` shows them)")
    chosen = {name: catalog[name] for name in options.names}
    if options.action == "list":
        return _list(chosen or catalog, folder)
    if options.action == "check":
        return _check(chosen or {n: s for n, s in catalog.items() if (folder / n).is_dir()}, folder)
    if not chosen:
        raise UsageError("get: expected the names of data sets (`jaxlm data list` shows them)")
    for name, data_set in chosen.items():
        _get(name, data_set, folder, options.accept_license)
    return 0


def _list(data_sets: dict[str, DataSet], folder: Path) -> int:
    width = max(map(len, data_sets))
    for name, data_set in data_sets.items():
        size = format_bytes(data_set.bytes) if data_set.bytes else "-"
        here = "here" if data_set.files and all((folder / name / file).exists() for file in data_set.files) else ""
        print(f"{name:{width}}  {size:>9}  {here:4}  {data_set.task}: {data_set.content} ({data_set.license})")
    return 0


def _check(data_sets: dict[str, DataSet], folder: Path) -> int:
    num_files = num_faults = 0
    for name, data_set in data_sets.items():
        for file_name, file in data_set.files.items():
            path = folder / name / file_name
            fault = content_fault(path, file) if path.exists() else "is missing"
            num_files, num_faults = num_files + 1, num_faults + bool(fault)
            if fault:
                print(f"{path} {fault}")
    print(f"{num_files} files of {len(data_sets)} data sets in {folder}, {num_faults} with a fault")
    return int(num_faults > 0)


def _get(name: str, data_set: DataSet, folder: Path, is_accepted: bool) -> None:
    if data_set.tfds:
        from jaxlm.data.sources.tfds import prepare_data_set

        _accept(name, data_set, is_accepted)
        return prepare_data_set(name)
    missing = missing_files(data_set, folder / name)
    if not missing and data_set.files:
        return print_stderr(f"{name}: all {len(data_set.files)} files are in {folder / name}")
    if data_set.instructions:
        lacks = f"{len(missing)} files are missing in {folder / name}, and " if missing else ""
        raise UserError(f"{name}: {lacks}no address gives them. {data_set.instructions}")
    _accept(name, data_set, is_accepted)
    for file_name in missing:
        _get_with_bar(data_set, file_name, folder / name)
    print_stderr(f"{name}: {len(missing)} files in {folder / name} ({data_set.license})")


def _accept(name: str, data_set: DataSet, is_accepted: bool) -> None:
    """Ask whether the user accepts a license that is not open. Raises UserError if not."""
    if data_set.use == "open" or is_accepted:
        return
    question = f"{name}: {data_set.content}. License: {data_set.license} ({data_set.use})"
    if not sys.stdin.isatty():
        raise UserError(f"{question}: read it, then add --accept-license")
    print_stderr(f"{question}. Use it under these terms? [y/N] ")
    if input().strip().lower() not in ("y", "yes"):
        raise UserError(f"{name} was not fetched")


def _get_with_bar(data_set: DataSet, file_name: str, folder: Path) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(file_name, total=data_set.files[file_name].bytes)
        get_file(
            data_set,
            file_name,
            folder,
            lambda arrived, total: progress.update(task, completed=arrived, total=total or None),
        )
