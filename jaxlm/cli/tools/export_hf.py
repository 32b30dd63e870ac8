"""`jaxlm export-hf D FOLDER`: convert a workdir to a Hugging Face Transformers model."""

from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.parser import COMMANDS, CommandParser, add_trust_option


def main(argv: list[str]) -> int:
    """Write the folder, and print its files."""
    parser = CommandParser("export-hf", COMMANDS["export-hf"])
    parser.add_argument("workdir", metavar="D", type=Path, help="the folder of a training run or of import-hf")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder to create")
    text = "dtype of the stored weights (default: that of each imported array; float32 if it would lose digits)"
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help=text)
    add_trust_option(parser)
    options = parser.parse(argv)
    from jaxlm import runtime

    runtime.configure_process()
    from jaxlm.huggingface.workdir import export_folder

    output.print_stderr(f"{options.folder}: {', '.join(export_folder(options.workdir, options.folder, options.dtype))}")
    return 0
