"""`jaxlm train translate|lm|classify|tag --train FILE ...`: the standard recipe of a task, for files of one's own.

The recipe becomes an experiment file next to the workdir, with sizes that fit the files. It is trained like any other
experiment, and can be edited: the way from no code to code of one's own.
"""

import shlex
from dataclasses import replace
from itertools import chain
from pathlib import Path
from string import Template
from typing import Any

from jaxlm.cli.own_files import as_python, read_files
from jaxlm.cli.parser import RECIPES, CommandParser, add_columns_option
from jaxlm.data.sources.transforms import HashSplit
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.data.tokenizers.simple import WordsWithChars
from jaxlm.errors import UserError
from jaxlm.filesystem import write_atomic

PIECES = (16_000, 8000, 4000, 2000, 1000, 500, 400)
"""Sizes of a vocabulary of pieces: the first with 20 characters of text for each that the text can give."""

TRANSLATION_SIZES = {
    0: {"width": 128, "heads": 4, "hidden": 256, "layers": 3, "dropout": 0.3, "peak": 5e-3, "warmup": 500,
        "steps": 4000},
    200_000: {"width": 256, "heads": 4, "hidden": 1024, "layers": 4, "dropout": 0.2, "peak": 2e-3, "warmup": 2000,
              "steps": 20_000},
    2_000_000: {"width": 512, "heads": 8, "hidden": 2048, "layers": 6, "dropout": 0.1, "peak": 7e-4, "warmup": 4000,
                "steps": 100_000},
}  # fmt: skip
"""Sizes of the model, from this number of pairs on."""

LM_SIZES = {
    0: {"width": 128, "heads": 4, "layers": 4, "dropout": 0.2, "peak": 2e-3, "warmup": 100, "steps": 2000},
    20_000_000: {"width": 256, "heads": 8, "layers": 6, "dropout": 0.1, "peak": 1e-3, "warmup": 200, "steps": 10_000},
    1_000_000_000: {"width": 768, "heads": 12, "layers": 12, "dropout": 0.0, "peak": 6e-4, "warmup": 2000,
                    "steps": 100_000},
}  # fmt: skip
"""Sizes of the model, from this number of characters on."""


def write_recipe(argv: list[str]) -> list[str]:
    """Write the experiment of `RECIPE --train FILE ... [options of train]`; return the arguments that train it.

    Raises UsageError for wrong options, and UserError for files that cannot be read or another file of that name.
    """
    options, rest = _parser(argv[0]).parse_known_args(argv[1:])
    workdir = options.workdir or Path("runs") / options.recipe
    file = workdir.with_name(workdir.name + ".py")
    splits = options.train, options.valid, options.test
    sources = [read_files(options.recipe, files, options.columns) if files else None for files in splits]
    values = _values(options.recipe, *_splits(options.recipe, sources))
    given = {name: getattr(options, name) for name in ("train", "valid", "test", "columns")}
    given["workdir"] = [str(workdir)] if options.workdir else []
    words = [word for name, files in given.items() if files for word in (f"--{name}", *files)]
    command = shlex.join(["jaxlm", "train", options.recipe, *words])
    values |= {"command": command.replace("\\", "\\\\"), "file": file, "workdir": workdir}
    text = Template((Path(__file__).parent / f"{options.recipe}.txt").read_text(encoding="utf-8")).substitute(values)
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{file} exists and is not what this command writes: train it (`jaxlm train {file} --workdir {workdir}`), "
            "remove it, or choose another --workdir"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, text)
    return [str(file), "--workdir", str(workdir), *rest]


def _parser(recipe: str) -> CommandParser:
    parser = CommandParser(f"train {recipe}", f"train the standard experiment of `{recipe}` on your files")
    parser.add_argument("--train", nargs="+", required=True, metavar="FILE", help=RECIPES[recipe])
    parser.add_argument("--valid", nargs="+", default=[], metavar="FILE", help="likewise (default: a part of --train)")
    parser.add_argument("--test", nargs="+", default=[], metavar="FILE", help="likewise (default: see --valid)")
    add_columns_option(parser)
    parser.add_argument("--workdir", type=Path, metavar="D", help=f"folder of the run (default: runs/{recipe})")
    parser.set_defaults(recipe=recipe)
    return parser


def _splits(recipe: str, sources: list[Any]) -> list[Any]:
    """Sources of all three splits: what has no file is a part of the training file, or the validation split."""
    train, valid, test = sources
    if valid is None and recipe == "lm":
        train, valid = (
            replace(train, start_fraction=start, end_fraction=end) for start, end in ((0.0, 0.9), (0.9, 1.0))
        )
    elif valid is None:
        parts: Any = ("train", "valid", "test")
        train, valid, held_out = (HashSplit(train, part, valid=0.05, test=0.05) for part in parts)
        test = test or held_out
    return [train, valid, test or valid]


def _values(recipe: str, train: Any, valid: Any, test: Any) -> dict[str, Any]:
    """The values in the template of a recipe: expressions, and sizes that fit the data."""
    expressions, names = zip(*map(as_python, (train, valid, test)), strict=True)
    values: dict[str, Any] = dict(zip(("train", "valid", "test"), expressions, strict=True))
    values["imports"] = ", ".join(sorted(set().union(*names)))
    if recipe == "lm":
        texts = list(train)
        count = sum(map(len, texts))
        return values | _size(LM_SIZES, count) | {"examples": f"{count:,}", "vocab": _vocab_of_pieces(texts)}
    rows = list(train)
    values["examples"] = f"{len(rows):,}"
    if recipe == "translate":
        return values | _size(TRANSLATION_SIZES, len(rows)) | {"vocab": _vocab_of_pieces(list(chain(*rows)))}
    tokenizer = WordsWithChars(20_000, 150, lowercase=True).fit(text for text, _ in rows)
    values |= {"vocab": tokenizer.vocab_size, "characters": tokenizer.char_vocab_size}
    labels = {label for _, text in chain(rows, valid, test) for label in (text.split() if recipe == "tag" else [text])}
    if len(labels) > 1000:
        raise UserError(f"{len(labels):,} classes, such as {min(labels)!r}: expected at most 1,000. Check --columns")
    spans = recipe == "tag" and "O" in labels and all(label == "O" or label[:2] in ("B-", "I-") for label in labels)
    order = sorted(labels, key=lambda label: (label != "O", label[2:], label[:2]) if spans else (False, label, ""))
    metric = "valid/f1" if spans else "valid/accuracy"
    return values | {"labels": tuple(order), "spans": spans, "metric": metric, "steps": min(3000, 300 + len(rows) // 8)}


def _size(sizes: dict[int, dict[str, Any]], count: int) -> dict[str, Any]:
    size = sizes[max(least for least in sizes if least <= count)]
    return size | {"interval": max(size["steps"] // 20, 100)}


def _vocab_of_pieces(texts: list[str]) -> int:
    """The largest of PIECES that the texts can give. Raises UserError if they can give none."""
    num_chars = sum(map(len, texts))
    sizes = [size for size in PIECES if 20 * size <= num_chars] or [PIECES[-1]]
    for size in sizes:
        if num_chars > 2000 * size:
            return size
        try:
            SentencePiece(size, model_type="bpe").fit(texts)
            return size
        except UserError as error:
            reason = error
    raise reason
