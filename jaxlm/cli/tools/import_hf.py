"""`jaxlm import-hf FOLDER --workdir D`: a model of Hugging Face as a workdir, for all verbs that use one."""

from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.parser import COMMANDS, CommandParser


def main(argv: list[str]) -> int:
    """Read, write, and say what it is."""
    parser = CommandParser("import-hf", COMMANDS["import-hf"])
    text = "a folder with config.json, *.safetensors and the tokenizer's files, as save_pretrained writes it"
    parser.add_argument("folder", metavar="FOLDER", type=Path, help=text)
    parser.add_argument("--workdir", metavar="D", type=Path, required=True, help="the workdir to make")
    text = "of activations and products (default: float32); parameters are float32"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=text)
    options = parser.parse(argv)
    from jaxlm import runtime

    runtime.configure_process()
    from jaxlm.huggingface.workdir import import_folder

    experiment = import_folder(options.folder, options.workdir, dtype=options.dtype)
    verb = {"text": "generate"}.get(experiment.task.input_kind, "predict" if experiment.task.metric_names else "embed")
    output.print_stderr(f"{options.workdir} is ready: jaxlm {verb} {options.workdir}")
    return 0
