"""`jaxlm import-hf FOLDER --workdir D`: a model of Hugging Face as a workdir, for all verbs that use one."""

from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.usage import VERBS, Parser


def main(argv: list[str]) -> int:
    """Read, write, and say what it is."""
    parser = Parser("import-hf", VERBS["import-hf"])
    text = "a folder with config.json, *.safetensors and the tokenizer's files, as save_pretrained writes it"
    parser.add_argument("folder", metavar="FOLDER", type=Path, help=text)
    parser.add_argument("--workdir", metavar="D", type=Path, required=True, help="the workdir to make")
    text = "of activations and products (default: float32); parameters are float32"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=text)
    options = parser.parse(argv)
    from jaxlm import runtime

    runtime.prepare()
    from jaxlm.interop.published import import_folder

    experiment = import_folder(options.folder, options.workdir, dtype=options.dtype)
    verb = {"text": "generate"}.get(experiment.task.prompts, "predict" if experiment.task.figures else "embed")
    output.note(f"{options.workdir} is ready: jaxlm {verb} {options.workdir}")
    return 0
