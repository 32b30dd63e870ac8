"""`jaxlm prepare FILE ... --out D`: a corpus into shards of ids, by several processes; resumable, checked.

The last line of stdout is a JSON object: documents, tokens, unknown tokens, bytes of text, shards, shards kept from an
earlier call. The same command goes on with what was killed, and checks what is there.
"""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli import output
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError, int_at_least
from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.data.sources.text import Documents
    from jaxlm.data.tokenizers.base import Tokenizer

JSON_ENDINGS = (".jsonl", ".json", ".ndjson")

MEGABYTE = 1 << 20


def main(argv: list[str]) -> int:
    """Prepare, and say how much it is."""
    options = _parser().parse(argv)
    from jaxlm.data.files import ReadStats, find_file
    from jaxlm.data.sources.text import Documents
    from jaxlm.data.storage.shards import build_shards

    names = tuple(str(find_file(name)) for name in options.files)
    unit: Any = options.unit or (
        "json" if _without_gz(names[0]).endswith(JSON_ENDINGS) else "heading" if options.heading else "line"
    )
    try:
        documents = Documents(
            names, unit, options.heading, options.json_key, options.line_separator.replace(r"\n",
            "\n").replace(r"\t", "\t"),
            options.on_bad_line,
        )  # fmt: skip
    except UserError as error:
        raise UsageError(str(error)) from error
    tokenizer, bad, began = _get_tokenizer(options, documents), ReadStats(), time.perf_counter()
    processes = options.num_workers or os.cpu_count() or 1
    with output.progress_bar(sum(_text_bytes(name) for name in names)) as progress:

        def done(record: Any, kept: bool) -> None:
            if progress:
                progress(record.bytes)
            else:
                state = "is there" if kept else "made"
                output.print_stderr(f"shard {record.name} {state}: {record.rows:,} documents, {record.ids:,} tokens")

        size = options.shard_mb * MEGABYTE
        found = build_shards(documents.read(bad), options.out, tokenizer, documents.describe(), processes, size, done)
    seconds = time.perf_counter() - began
    output.print_stderr(f"{documents.describe()}: {bad}")
    output.print_stderr(
        f"{found['documents']:,} documents, {found['bytes']:,} bytes, {found['tokens']:,} tokens "
        f"({found['bytes'] / max(found['tokens'], 1):.2f} bytes a token), {found['unknown']:,} unknown; "
        f"{found['shards']} shards, {found['kept']} of them kept; "
        f"{found['bytes'] / MEGABYTE / seconds:.1f} MB/s by {processes} processes"
    )
    output.write_line(output.json_line(found | {"out": str(options.out), "seconds": round(seconds, 3)}))
    return 0


def _parser() -> CommandParser:
    parser = CommandParser("prepare", COMMANDS["prepare"])
    text = "plain or gzipped UTF-8 text, or JSON lines; relative paths as in experiments"
    parser.add_argument("files", metavar="FILE", nargs="+", help=text)
    parser.add_argument("--out", type=Path, metavar="D", required=True, help="the folder to make or to go on with")
    text = "a document is a line (the default), the lines of a block between blank ones, those from one heading to the "
    text += "next (see --heading), or a field of JSON lines (the default for *.jsonl)"
    parser.add_argument("--unit", choices=("line", "block", "heading", "json"), help=text)
    text = "regular expression that the beginning of a heading matches, as ' = [^=]'"
    parser.add_argument("--heading", default="", metavar="REGEX", help=text)
    parser.add_argument("--json-key", default="text", metavar="KEY", help="of JSON lines (default: text)")
    text = r"what joins the lines of a document (default: \n)"
    parser.add_argument("--line-separator", default=r"\n", metavar="TEXT", help=text)
    text = "take the tokenizer of this workdir or of these shards; without it one is learnt from the corpus"
    parser.add_argument("--tokenizer", metavar="D", help=text)
    parser.add_argument(
        "--vocab-size", type=int_at_least(5), metavar="N", help="learn SentencePiece of so many ids (default: 32000)"
    )
    parser.add_argument("--model-type", choices=("unigram", "bpe"), default="unigram", help="of SentencePiece")
    text = "a piece of its own, such as [MASK] (any number of times)"
    parser.add_argument("--user-defined-symbol", action="append", default=[], metavar="TEXT", help=text)
    text = "documents to learn SentencePiece from, drawn at random (default: 300000)"
    parser.add_argument("--sample-size", type=int_at_least(1), default=300_000, metavar="N", help=text)
    parser.add_argument("--num-workers", type=int_at_least(1), metavar="N", help="default: one a core")
    text = "megabytes of text in a shard (default: 64)"
    parser.add_argument("--shard-mb", type=int_at_least(1), default=64, metavar="N", help=text)
    text = "a line that is not UTF-8: stop (the default), put U+FFFD for the bad bytes, or leave it out"
    parser.add_argument("--on-bad-line", choices=("error", "replace", "skip"), default="error", help=text)
    return parser


def _get_tokenizer(options: argparse.Namespace, documents: "Documents") -> "Tokenizer":
    """The one that is named, that of an earlier call, or a new one."""
    from jaxlm.data.tokenizers.loading import load_saved_tokenizer, load_tokenizer
    from jaxlm.data.tokenizers.sentencepiece import SentencePiece

    if options.tokenizer:
        if options.vocab_size or options.user_defined_symbol:
            raise UsageError(
                "--vocab-size and --user-defined-symbol are of a tokenizer that is learnt, and --tokenizer names "
                "one that exists"
            )
        return load_saved_tokenizer(Path(options.tokenizer).absolute())
    if (options.out / "tokenizer").is_dir():
        tokenizer = load_tokenizer(options.out / "tokenizer")
        if options.vocab_size not in (None, tokenizer.vocab_size):
            raise UserError(
                f"{options.out} has a tokenizer of {tokenizer.vocab_size:,} ids, asked for "
                f"{options.vocab_size:,}: choose another "
                "--out, or remove that folder"
            )
        return tokenizer
    size = options.vocab_size or 32_000
    output.print_stderr(f"tokenizer: learning SentencePiece of {size:,} ids from {documents.describe()}")
    config = SentencePiece(
        size,
        options.model_type,
        user_defined_symbols=tuple(options.user_defined_symbol),
        sample_size=options.sample_size,
    )
    return config.fit(iter(documents))


def _without_gz(name: str) -> str:
    return name.lower().removesuffix(".gz")


def _text_bytes(name: str) -> int:
    """Bytes of text in a file: exact for plain text; gzip keeps the last four digits of base 256 of its own."""
    with open(name, "rb") as stream:
        if stream.read(2) != b"\x1f\x8b":
            return stream.seek(0, os.SEEK_END)
        packed = stream.seek(0, os.SEEK_END)
        stream.seek(-4, os.SEEK_END)
        least = int.from_bytes(stream.read(4), "little")
    return max(least, packed)
