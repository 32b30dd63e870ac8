"""`jaxlm train translate|lm|classify|tag --train FILE ...`: the standard recipe of a task, for files of one's own.

The recipe becomes an experiment file next to the workdir, with sizes that fit the files. It is trained like any other
experiment, and can be edited: the way from no code to code of one's own.
"""

import shlex
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from string import Template
from typing import Any

from jaxlm.cli.parser import RECIPES, CommandParser, UsageError
from jaxlm.data.files import COMPRESSED_ENDINGS, ReadStats, find_file, iter_lines
from jaxlm.data.sources.arrow import ArrowTable
from jaxlm.data.sources.conll import ColumnFile, ConllU
from jaxlm.data.sources.parallel import Csv, JsonLines, ParallelFiles, Tsv
from jaxlm.data.sources.text import TextFile
from jaxlm.data.sources.transforms import HashSplit
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.data.tokenizers.simple import WordsWithChars
from jaxlm.errors import UserError
from jaxlm.filesystem import write_atomic

TABLES: dict[str, Any] = {
    ".csv": Csv, ".tsv": Tsv, ".jsonl": JsonLines, ".parquet": ArrowTable, ".arrow": ArrowTable, ".feather": ArrowTable
}  # fmt: skip
"""The reader of a file by its ending; any other file has a text a line."""

PIECES = (16_000, 8000, 4000, 2000, 1000, 500)
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


@dataclass
class Reader:
    """A source as an object and as the expression that makes it; `names`: the classes in the expression."""

    source: Any
    expression: str
    names: set[str] = field(default_factory=set)


def write_recipe(argv: list[str]) -> list[str]:
    """Write the experiment of `RECIPE --train FILE ... [options of train]`; return the arguments that train it.

    Raises UsageError for wrong options, and UserError for files that cannot be read or another file of that name.
    """
    options, rest = _parser(argv[0]).parse_known_args(argv[1:])
    workdir = options.workdir or Path("runs") / options.recipe
    file = workdir.with_name(workdir.name + ".py")
    readers = [_reader(options.recipe, files, options) for files in (options.train, options.valid, options.test)]
    values = _values(options.recipe, *_splits(options.recipe, readers))
    command = shlex.join(["jaxlm", "train", *argv])
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
    text = "columns of a table: SOURCE TARGET, or TEXT CLASS; of a file of tags the numbers of word and tag, from 0"
    parser.add_argument("--columns", nargs=2, metavar="NAME", help=text)
    parser.add_argument("--workdir", type=Path, metavar="D", help=f"folder of the run (default: runs/{recipe})")
    parser.set_defaults(recipe=recipe)
    return parser


def _reader(recipe: str, files: list[str], options: Any) -> Reader | None:
    """The source of the files of one split."""
    if not files:
        return None
    paths = [str(find_file(str(Path(file).absolute()))) for file in files]
    endings = [end for end in Path(paths[0]).suffixes if end.lower() not in COMPRESSED_ENDINGS]
    ending = endings[-1].lower() if endings else ""
    if len(paths) != (2 if recipe == "translate" and ending not in TABLES else 1):
        raise UsageError(f"{recipe} with {' '.join(files)}: expected {RECIPES[recipe]}")
    if recipe == "lm":
        return Reader(TextFile(paths[0], "whole"), f'TextFile({paths[0]!r}, "whole")', {"TextFile"})
    if recipe == "translate" and len(paths) == 2:
        return _make(ParallelFiles, *paths)
    if recipe == "tag":
        return _tag_reader(paths[0], ending, options.columns)
    if ending not in TABLES:
        raise UsageError(f"{files[0]}: expected a table that ends in {', '.join(TABLES)}, perhaps compressed")
    columns = options.columns or _default_columns(paths[0], ending)
    has_numbers = ending in (".csv", ".tsv") and all(name.isdecimal() for name in columns)
    return _make(TABLES[ending], paths[0], *(map(int, columns) if has_numbers else columns))


def _tag_reader(path: str, ending: str, columns: list[str] | None) -> Reader:
    if ending == ".conllu":
        first = next(line for line in iter_lines(path, "replace", ReadStats()) if line and not line.startswith("#"))
        if first.count("\t") == 9:
            return _make(ConllU, path)
    lines = (line for line in iter_lines(path, "replace", ReadStats()) if line and line.strip())
    is_tabbed = "\t" in next(lines, "")
    word, tag = map(int, columns) if columns else (0, -1)
    separator = "\t" if is_tabbed else None
    expression = f"ColumnFile({path!r}, {word}, {tag}, separator={separator!r})"
    return Reader(ColumnFile(path, word, tag, separator), expression, {"ColumnFile"})


def _default_columns(path: str, ending: str) -> list[str]:
    """The two columns of a table. Raises UsageError, with their names, if there are others."""
    if ending == ".tsv":
        return ["0", "1"]
    if ending == ".csv":
        names = next(Csv(path, 0, 1)._iter_records(find_file(path), ReadStats()))[1] or []
        if len(names) == 2:
            return names
        raise UsageError(f"{path} has the columns {', '.join(names)}: choose two with --columns")
    raise UsageError(f"{path}: choose two of its columns with --columns")


def _make(kind: Any, *arguments: Any) -> Reader:
    return Reader(kind(*arguments), f"{kind.__name__}({', '.join(map(repr, arguments))})", {kind.__name__})


def _splits(recipe: str, readers: list[Reader | None]) -> list[Reader]:
    """Sources of all three splits: what has no file is a part of the training file, or the validation split."""
    train, valid, test = readers
    assert train is not None
    if valid is None:
        if recipe == "lm":
            path, names = train.source.path, train.names
            train, valid = (
                Reader(TextFile(path, "whole", *part), f'TextFile({path!r}, "whole", {part[0]}, {part[1]})', names)
                for part in ((0.0, 0.9), (0.9, 1.0))
            )
        else:
            train, valid, held_out = (
                Reader(
                    HashSplit(train.source, part, valid=0.05, test=0.05),
                    f'HashSplit({train.expression}, "{part}", valid=0.05, test=0.05)',
                    {"HashSplit", *train.names},
                )
                for part in ("train", "valid", "test")
            )
            test = test or held_out
    return [train, valid, test or valid]


def _values(recipe: str, train: Reader, valid: Reader, test: Reader) -> dict[str, Any]:
    """The values in the template of a recipe: expressions, and sizes that fit the data."""
    values: dict[str, Any] = {"train": train.expression, "valid": valid.expression, "test": test.expression}
    values["imports"] = ", ".join(sorted(train.names | valid.names | test.names))
    if recipe == "lm":
        texts = list(train.source)
        count = sum(map(len, texts))
        return values | _size(LM_SIZES, count) | {"examples": f"{count:,}", "vocab": _vocab_of_pieces(texts)}
    rows = list(train.source)
    values["examples"] = f"{len(rows):,}"
    if recipe == "translate":
        return values | _size(TRANSLATION_SIZES, len(rows)) | {"vocab": _vocab_of_pieces(list(chain(*rows)))}
    tokenizer = WordsWithChars(20_000, 150, lowercase=True).fit(text for text, _ in rows)
    values |= {"vocab": tokenizer.vocab_size, "characters": tokenizer.char_vocab_size}
    labels = {
        label
        for _, text in chain(rows, valid.source, test.source)
        for label in (text.split() if recipe == "tag" else [text])
    }
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
