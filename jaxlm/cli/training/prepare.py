"""`jaxlm prepare FILE ... --out D`: tokenize a corpus into shards with several processes; resumable and verified.

The last line of stdout is a JSON object: documents, tokens, unknown tokens, bytes of text, shards, shards kept from an
earlier call. The same command resumes a killed call, and verifies the shards that exist.
"""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli import output
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError, add_bad_line_option
from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.data.sources.text import Documents, TextSource
    from jaxlm.data.tokenizers.base import Tokenizer

JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
MEBIBYTE = 1 << 20
DEFAULT_VOCAB_SIZE = 32_000


def main(argv: list[str]) -> int:
    """Write the shards and print a summary."""
    options = _parser().parse(argv)
    if ":" in options.files[0] and not Path(options.files[0]).exists():
        return _prepare_corpus(options)
    from jaxlm.data.files import ReadStats
    from jaxlm.data.storage.shards import build_shards

    documents = _documents(options)
    tokenizer, stats, start = _get_tokenizer(options, documents), ReadStats(), time.perf_counter()
    processes, shard_bytes = options.num_workers or os.cpu_count() or 1, options.shard_mb * MEBIBYTE
    with output.progress_bar(sum(_text_bytes(name) for name in documents.paths)) as progress:

        def on_shard(record: Any, kept: bool) -> None:
            counts = f"{record.rows:,} documents, {record.ids:,} tokens"
            if progress:
                progress(record.bytes)
            else:
                output.print_stderr(f"shard {record.name} {'exists' if kept else 'written'}: {counts}")

        source, description = documents.read(stats), documents.describe()
        totals = build_shards(source, options.out, tokenizer, description, processes, shard_bytes, on_shard)
    seconds = time.perf_counter() - start
    output.print_stderr(f"{description}: {stats}")
    output.print_stderr(
        f"{totals['documents']:,} documents, {totals['bytes']:,} bytes, {totals['tokens']:,} tokens "
        f"({totals['bytes'] / max(totals['tokens'], 1):.2f} bytes a token), {totals['unknown']:,} unknown; "
        f"{totals['shards']} shards, {totals['kept']} of them kept; "
        f"{totals['bytes'] / MEBIBYTE / seconds:.1f} MB/s with {processes} processes"
    )
    output.write_line(output.json_line(totals | {"out": str(options.out), "seconds": round(seconds, 3)}))
    return 0


def _prepare_corpus(options: argparse.Namespace) -> int:
    """`jaxlm prepare MODULE:NAME`: the three passes of a Corpus, or a look at its first documents."""
    from jaxlm.cli.experiments import load_object
    from jaxlm.corpora.corpus import Corpus
    from jaxlm.corpora.passes import Builder
    from jaxlm.corpora.personal import MASKS, Personal
    from jaxlm.corpora.write import build_corpus
    from jaxlm.data.files import ReadStats

    stats, start = ReadStats(), time.perf_counter()
    processes, part_bytes = options.num_workers or os.cpu_count() or 1, options.shard_mb * MEBIBYTE
    builder = Builder(load_object(options.files[0], Corpus), options.out, processes, part_bytes)
    if options.sample:
        for line in builder.sample(options.sample):
            output.write_line(line)
        return 0
    if any(isinstance(step, Personal) for step in builder.corpus.steps) and not options.tokenizer:
        options.user_defined_symbol += MASKS.values()

    def on_part(record: dict, kept: bool) -> None:
        counts = f"{record['read']:,} documents read, {record['kept']:,} pass the filters"
        output.print_stderr(f"part {record['name']} {'exists' if kept else 'written'}: {counts}")

    totals = build_corpus(builder, lambda texts: _get_tokenizer(options, texts), stats, on_part)
    output.print_stderr(f"{stats}")
    seconds = round(time.perf_counter() - start, 3)
    output.write_line(output.json_line(totals | {"out": str(options.out), "seconds": seconds}))
    return 0


def _parser() -> CommandParser:
    parser = CommandParser("prepare", COMMANDS["prepare"])
    text = "UTF-8 text or JSON lines, plain or compressed; a relative path is looked for in $JAXLM_DATA, data/ and .; "
    text += "or MODULE:NAME, a function that returns a Corpus, with its own sources and steps"
    parser.add_argument("files", metavar="FILE", nargs="+", help=text)
    parser.add_argument("--out", type=Path, metavar="D", required=True, help="the folder of shards to create or resume")
    parser.add_int("--sample", "of a Corpus: print what each rule would drop of N documents a source; write nothing")
    text = "a document is a line (the default), a block of lines between blank lines, the lines from one heading "
    text += "(see --heading) to the next, or a field of a JSON line (the default for *.jsonl)"
    parser.add_argument("--unit", choices=("line", "block", "heading", "json"), help=text)
    text = "regular expression that matches the beginning of a heading, such as ' = [^=]'"
    parser.add_argument("--heading", default="", metavar="REGEX", help=text)
    text = "key of the text in JSON lines, such as meta.text (default: text)"
    parser.add_argument("--json-key", default="text", metavar="KEY", help=text)
    text = r"string that joins the lines of a document (default: \n)"
    parser.add_argument("--line-separator", default=r"\n", metavar="TEXT", help=text)
    text = "workdir or folder of shards whose tokenizer to use (default: train one on the corpus)"
    parser.add_argument("--tokenizer", metavar="D", help=text)
    parser.add_int("--vocab-size", f"vocabulary size of a new tokenizer (default: {DEFAULT_VOCAB_SIZE})", minimum=5)
    text = "SentencePiece model of a new tokenizer (default: unigram)"
    parser.add_argument("--model-type", choices=("unigram", "bpe"), default="unigram", help=text)
    parser.add_list("--user-defined-symbol", "a symbol with an id of its own, such as [MASK]")
    parser.add_int("--sample-size", "number of random documents to train a new tokenizer on", default=300_000)
    parser.add_int("--num-workers", "number of processes (default: one per core)")
    parser.add_int("--shard-mb", "megabytes of text per shard", default=64)
    parser.add_int("--max-line-mb", "megabytes of a line or document at most", default=64)
    add_bad_line_option(parser, ("error", "replace", "skip"), "error")
    return parser


def _documents(options: argparse.Namespace) -> "Documents":
    from jaxlm.data.files import find_file, text_name
    from jaxlm.data.sources.text import Documents

    names = tuple(str(find_file(name)) for name in options.files)
    unit: Any = options.unit
    if unit is None:
        is_json = text_name(Path(names[0])).lower().endswith(JSON_ENDINGS)
        unit = "json" if is_json else "heading" if options.heading else "line"
    separator = options.line_separator.replace(r"\n", "\n").replace(r"\t", "\t")
    try:
        limit = options.max_line_mb * 1_000_000
        return Documents(names, unit, options.heading, options.json_key, separator, options.on_bad_line, limit)
    except UserError as error:
        raise UsageError(str(error)) from error


def _get_tokenizer(options: argparse.Namespace, documents: "TextSource") -> "Tokenizer":
    """The tokenizer of `--tokenizer`, or that of an earlier call, or a new one."""
    from jaxlm.data.tokenizers.loading import load_saved_tokenizer, load_tokenizer
    from jaxlm.data.tokenizers.sentencepiece import SentencePiece

    if options.tokenizer:
        if options.vocab_size or options.user_defined_symbol:
            raise UsageError("--vocab-size and --user-defined-symbol are for a new tokenizer: leave out --tokenizer")
        return load_saved_tokenizer(Path(options.tokenizer).absolute())
    if (options.out / "tokenizer").is_dir():
        tokenizer = load_tokenizer(options.out / "tokenizer")
        if options.vocab_size not in (None, tokenizer.vocab_size):
            raise UserError(
                f"{options.out} has a tokenizer of {tokenizer.vocab_size:,} ids, expected {options.vocab_size:,} "
                "(--vocab-size): choose another --out, or remove that folder"
            )
        return tokenizer
    size, symbols = options.vocab_size or DEFAULT_VOCAB_SIZE, tuple(options.user_defined_symbol)
    output.print_stderr(f"tokenizer: training SentencePiece with {size:,} ids on {documents.describe()}")
    config = SentencePiece(size, options.model_type, user_defined_symbols=symbols, sample_size=options.sample_size)
    return config.fit(iter(documents))


def _text_bytes(name: str) -> int:
    """Bytes of text in a file: exact for plain text; gzip stores the size modulo 2^32."""
    with open(name, "rb") as stream:
        if stream.read(2) != b"\x1f\x8b":
            return stream.seek(0, os.SEEK_END)
        compressed = stream.seek(0, os.SEEK_END)
        stream.seek(-4, os.SEEK_END)
        stored = int.from_bytes(stream.read(4), "little")
    return max(stored, compressed)
