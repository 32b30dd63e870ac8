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
from jaxlm.cli.usage import VERBS, Parser, Usage, whole
from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.data.documents import Documents
    from jaxlm.data.vocabulary import Tokenizer

JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
MEGABYTE = 1 << 20


def main(argv: list[str]) -> int:
    """Prepare, and say how much it is."""
    options = _parser().parse(argv)
    from jaxlm.data.documents import Documents
    from jaxlm.data.prepare import prepare
    from jaxlm.data.text import BadLines, find

    names = tuple(str(find(name)) for name in options.files)
    unit: Any = options.unit or (
        "json" if _plain(names[0]).endswith(JSON_ENDINGS) else "heading" if options.heading else "line"
    )
    try:
        documents = Documents(
            names, unit, options.heading, options.field, options.between.replace(r"\n", "\n").replace(r"\t", "\t"),
            options.on_bad_line,
        )  # fmt: skip
    except UserError as error:
        raise Usage(str(error)) from error
    tokenizer, bad, began = _tokenizer(options, documents), BadLines(), time.perf_counter()
    processes = options.processes or os.cpu_count() or 1
    with output.bar(sum(_text_bytes(name) for name in names)) as progress:

        def done(record: Any, kept: bool) -> None:
            if progress:
                progress(record.bytes)
            else:
                state = "is there" if kept else "made"
                output.note(f"shard {record.name} {state}: {record.documents:,} documents, {record.tokens:,} tokens")

        size = options.shard_mb * MEGABYTE
        found = prepare(documents.read(bad), options.out, tokenizer, documents.describe(), processes, size, done)
    seconds = time.perf_counter() - began
    output.note(f"{documents.describe()}: {bad}")
    output.note(
        f"{found['documents']:,} documents, {found['bytes']:,} bytes, {found['tokens']:,} tokens "
        f"({found['bytes'] / max(found['tokens'], 1):.2f} bytes a token), {found['unknown']:,} unknown; "
        f"{found['shards']} shards, {found['kept']} of them kept; "
        f"{found['bytes'] / MEGABYTE / seconds:.1f} MB/s by {processes} processes"
    )
    output.emit(output.to_json(found | {"out": str(options.out), "seconds": round(seconds, 3)}))
    return 0


def _parser() -> Parser:
    parser = Parser("prepare", VERBS["prepare"])
    text = "plain or gzipped UTF-8 text, or JSON lines; relative paths as in experiments"
    parser.add_argument("files", metavar="FILE", nargs="+", help=text)
    parser.add_argument("--out", type=Path, metavar="D", required=True, help="the folder to make or to go on with")
    text = "a document is a line (the default), the lines of a block between blank ones, those from one heading to the "
    text += "next (see --heading), or a field of JSON lines (the default for *.jsonl)"
    parser.add_argument("--unit", choices=("line", "block", "heading", "json"), help=text)
    text = "regular expression that the beginning of a heading matches, as ' = [^=]'"
    parser.add_argument("--heading", default="", metavar="REGEX", help=text)
    parser.add_argument("--field", default="text", metavar="KEY", help="of JSON lines (default: text)")
    text = r"what joins the lines of a document (default: \n)"
    parser.add_argument("--between", default=r"\n", metavar="TEXT", help=text)
    text = "take the tokenizer of this workdir or of these shards; without it one is learnt from the corpus"
    parser.add_argument("--tokenizer", metavar="D", help=text)
    parser.add_argument(
        "--size", type=whole(5), metavar="N", help="learn SentencePiece of so many ids (default: 32000)"
    )
    parser.add_argument("--kind", choices=("unigram", "bpe"), default="unigram", help="of SentencePiece")
    text = "a piece of its own, such as [MASK] (any number of times)"
    parser.add_argument("--symbol", action="append", default=[], metavar="TEXT", help=text)
    text = "documents to learn SentencePiece from, drawn at random (default: 300000)"
    parser.add_argument("--sample", type=whole(1), default=300_000, metavar="N", help=text)
    parser.add_argument("--processes", type=whole(1), metavar="N", help="default: one a core")
    text = "megabytes of text in a shard (default: 64)"
    parser.add_argument("--shard-mb", type=whole(1), default=64, metavar="N", help=text)
    text = "a line that is not UTF-8: stop (the default), put U+FFFD for the bad bytes, or leave it out"
    parser.add_argument("--on-bad-line", choices=("error", "replace", "skip"), default="error", help=text)
    return parser


def _tokenizer(options: argparse.Namespace, documents: "Documents") -> "Tokenizer":
    """The one that is named, that of an earlier call, or a new one."""
    from jaxlm.data.sentencepiece import SentencePiece
    from jaxlm.data.tokenizer import load_tokenizer, stored_tokenizer

    if options.tokenizer:
        if options.size or options.symbol:
            raise Usage("--size and --symbol are of a tokenizer that is learnt, and --tokenizer names one that exists")
        return stored_tokenizer(Path(options.tokenizer).absolute())
    if (options.out / "tokenizer").is_dir():
        tokenizer = load_tokenizer(options.out / "tokenizer")
        if options.size not in (None, tokenizer.size):
            raise UserError(
                f"{options.out} has a tokenizer of {tokenizer.size:,} ids, asked for {options.size:,}: choose another "
                "--out, or remove that folder"
            )
        return tokenizer
    size = options.size or 32_000
    output.note(f"tokenizer: learning SentencePiece of {size:,} ids from {documents.describe()}")
    config = SentencePiece(size, options.kind, symbols=tuple(options.symbol), sample=options.sample)
    return config.fit(iter(documents))


def _plain(name: str) -> str:
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
