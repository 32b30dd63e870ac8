"""`jaxlm export-hf D FOLDER`: the model of a workdir as Hugging Face Transformers reads it."""

from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.parser import COMMANDS, CommandParser


def main(argv: list[str]) -> int:
    """Read, write, and say which files."""
    parser = CommandParser("export-hf", COMMANDS["export-hf"])
    parser.add_argument("workdir", metavar="D", type=Path, help="the folder of a training run, or of import-hf")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder to make")
    text = "of the stored weights (default: as they were imported, or float32)"
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help=text)
    options = parser.parse(argv)
    from jaxlm import runtime

    runtime.configure_process()
    from jaxlm.huggingface.workdir import export_folder

    output.print_stderr(f"{options.folder}: {', '.join(export_folder(options.workdir, options.folder, options.dtype))}")
    return 0
