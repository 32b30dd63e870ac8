"""`jaxlm import-hf MODEL --workdir D`: convert a Hugging Face folder or a GGUF file to a workdir."""

from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.parser import COMMANDS, CommandParser


def main(argv: list[str]) -> int:
    """Write the workdir, and print a command that uses it."""
    parser = CommandParser("import-hf", COMMANDS["import-hf"])
    text = "a GGUF file, or a folder with config.json, *.safetensors and tokenizer files, as written by save_pretrained"
    parser.add_argument("model", metavar="MODEL", type=Path, help=text)
    parser.add_argument("--workdir", metavar="D", type=Path, required=True, help="the workdir to create")
    text = "dtype of activations and products (default: float32); parameters are float32"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=text)
    options = parser.parse(argv)
    from jaxlm import runtime

    runtime.configure_process()
    from jaxlm.huggingface.workdir import import_model

    task = import_model(options.model, options.workdir, dtype=options.dtype).task
    command = "generate" if task.input_kind == "text" else "predict" if task.metric_names else "embed"
    output.print_stderr(f"{options.workdir} is ready: jaxlm {command} {options.workdir}")
    return 0
