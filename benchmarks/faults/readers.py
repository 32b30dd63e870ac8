"""The readers of files that others wrote, each as a function of the bytes of one file, and whole files to begin with.

A reader raises UserError for a file that it refuses. Everything else that it raises is a fault (`fuzz.py`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm import ArrowTable, ColumnFile, ConllU, Csv, Documents, LabeledLines, ParallelFiles, RteXml, TextFile, Tsv
from jaxlm.corpora.opt_out import OptOut, OptOutRules
from jaxlm.data.files import ReadStats, read_lines
from jaxlm.data.sources.parallel import JsonLines
from jaxlm.scaling.fit import read_law
from jaxlm.scaling.table import read_runs
from jaxlm.trees.reader import Trees

Prepare = Callable[[Path], list[bytes]]
Read = Callable[[bytes, Path], object]


@dataclass(frozen=True)
class Reader:
    """`prepare` makes the files around it, and gives whole files; `read` reads one in that folder."""

    prepare: Prepare
    read: Read


def file_reader(name: str, wholes: Iterable[bytes], read: Callable[[Path], object]) -> Reader:
    """The reader of a file that needs no other file."""

    def read_bytes(content: bytes, folder: Path) -> object:
        (folder / name).write_bytes(content)
        return read(folder / name)

    return Reader(lambda folder: list(wholes), read_bytes)


def consume(*sources: Any) -> None:
    """Read every row of some sources."""
    for source in sources:
        for _ in source.read(ReadStats()):
            pass


TEXT = "a dog\nel perro ladró\n\n la la  land \r\nvoilà \U0001f600\n".encode()
COLUMNS = b"John\tNNP\tB-PER\nSmith\tNNP\tI-PER\nsleeps\tVB\tO\n\n-DOCSTART-\tX\tO\n\nIn\tIN\tO\nRome\tNNP\tB-LOC\n"
CONLLU = (
    b"# sent_id = 1\n1-2\tvamonos\t_\t_\t_\t_\t_\t_\t_\t_\n1\tvamos\tir\tVERB\t_\tMood=Ind\t0\troot\t_\t_\n"
    b"2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_\n2.1\te\te\tVERB\t_\t_\t_\t_\t1:x\t_\n\n"
    b"1\thola\thola\tINTJ\t_\t_\t0\troot\t_\tSpaceAfter=No\n"
)
TSV = b"id\tsentence\tlabel\n1\ta good film\tpositive\n2\ta bad film\tnegative\n"
JSONL = (
    b'{"translation": {"en": "a dog", "es": "un perro"}, "text": "a", "label": "x"}\n'
    b'{"translation": {"en": "the cat", "es": "el gato"}, "text": "b\\u00e9", "label": "y"}\n'
)
XML = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<entailment-corpus>\n'
    b'<pair id="1" entailment="YES"><t>A dog &amp; a cat.</t><h>A dog.</h></pair>\n'
    b'<pair id="2" value="FALSE"><t>One</t><h>Two <b>three</b></h></pair>\n</entailment-corpus>\n'
)
DOCUMENTS = b" = One = \nfirst line\nsecond line\n\n = Two = \nthird line\n"


CSV = b'id,"text",label\n1,"a ""good"" film,\nreally",0\n2,a bad film,1\n'
TREES = b"(TOP (S (NP-SBJ (PRP it)) (VP (VBZ is) (-NONE- *T*-1)) (. .)))\n( (S\n  (NP (NN a))\n  (VP (VB b))))\n"
OPT_OUT = b"# domains\nexample.org\nhttps://example.com/a\n0123456789abcdef0123456789abcdef\ntext:a text of words\n"
RUNS_JSONL = b'{"params": 1e6, "tokens": 2e7, "loss": 3.5}\n{"params": 2e6, "tokens": 4e7, "loss": 3.1}\n'
RUNS = b"name,params,tokens,loss,unit\na,1e6,2e7,3.5,nats\nb,2e6,4e7,4.5,bits\n"
LAW = (
    b'{"law": "chinchilla", "theta": [1.0, 2.0, 3.0, 0.3, 0.3], "rows": 9, "objective": 0.1, "rms_log_error": 0.01, '
    b'"largest_flops": 1e20, "samples": [[1.0, 2.0, 3.0, 0.3, 0.3]]}'
)


def _tables() -> list[bytes]:
    """A Parquet file and an Arrow stream of texts and classes."""
    import io

    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    table = pyarrow.table({"text": ["a good film", "a bad one", None], "label": [0, 1, 2]})
    parquet, stream = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return [parquet.getvalue(), stream.getvalue()]


def _read_parallel(content: bytes, folder: Path) -> None:
    (folder / "source").write_bytes(content)
    for choice in ("error", "replace", "skip"):
        consume(ParallelFiles(str(folder / "source"), str(folder / "target"), choice))  # type: ignore[arg-type]


def _prepare_parallel(folder: Path) -> list[bytes]:
    (folder / "target").write_bytes(TEXT)
    return [TEXT]


def _each(content: bytes, folder: Path, name: str, makers: Iterable[Callable[[str], Any]]) -> None:
    """Read one file in several ways; a refusal of one does not spare the others."""
    from jaxlm.errors import UserError

    (folder / name).write_bytes(content)
    for make in makers:
        try:
            consume(make(str(folder / name)))
        except UserError:
            continue


def several(name: str, wholes: list[bytes], *makers: Callable[[str], Any]) -> Reader:
    """The reader of a file by several sources."""
    return Reader(lambda folder: wholes, lambda content, folder: _each(content, folder, name, makers))


def _lines(file: Path) -> None:
    for choice in ("error", "replace", "skip"):
        for _ in read_lines(file, choice):  # type: ignore[arg-type]
            pass


def gzipped() -> list[bytes]:
    """Whole compressed files: of one member, and of two."""
    import gzip

    return [gzip.compress(TEXT, mtime=0), gzip.compress(TEXT, mtime=0) + gzip.compress(TSV, mtime=0)]


READERS: dict[str, Reader] = {
    "lines": several("a.txt", [TEXT], TextFile, lambda path: TextFile(path, "whole", 0.1, 0.9, "replace")),
    "gzip": Reader(
        lambda folder: gzipped(), lambda content, folder: _each(content, folder, "a.gz", [TextFile])
    ),
    "parallel": Reader(_prepare_parallel, _read_parallel),
    "columns": several(
        "a.conll", [COLUMNS], ColumnFile, lambda path: ColumnFile(path, on_bad_line="skip", on_bad_tag="repair"),
        lambda path: ColumnFile(path, 0, 1, None, "#", "replace", "repair"),
    ),
    "conllu": several(
        "a.conllu", [CONLLU], ConllU, lambda path: ConllU(path, "FEATS", "skip"),
        lambda path: ConllU(path, "DEPREL", "replace"),
    ),
    "tsv": several(
        "a.tsv", [TSV], lambda path: Tsv(path, "sentence", "label"), lambda path: Tsv(path, (0, 1), 2, "skip"),
        lambda path: Tsv(path, 1, 2, "replace", True),
    ),
    "jsonl": several(
        "a.jsonl", [JSONL], lambda path: JsonLines(path, "translation.en", "translation.es"),
        lambda path: JsonLines(path, ("text", "label"), "translation.es", "skip"),
        lambda path: JsonLines(path, "text", "label", "replace"),
    ),
    "documents": several(
        "a.doc", [DOCUMENTS, JSONL], lambda path: Documents((path,)), lambda path: Documents((path,), unit="block"),
        lambda path: Documents((path,), unit="heading", heading=" = [^=]", on_bad_line="skip"),
        lambda path: Documents((path,), unit="json", on_bad_line="replace"),
        lambda path: Documents((path,), unit="json"),
    ),
    "csv": several(
        "a.csv", [CSV, TSV], lambda path: Csv(path, "text", "label"), lambda path: Csv(path, 1, 2, "skip", True),
        lambda path: Csv(path, (0, 1), 2, "replace", delimiter=";"),
    ),
    "arrow": Reader(
        lambda folder: _tables(),
        lambda content, folder: _each(content, folder, "a.parquet", [lambda path: ArrowTable(path, "text", "label")]),
    ),
    "trees": several("a.ptb", [TREES], Trees, lambda path: Trees(path, "skip")),
    "opt-out list": file_reader("a.optout", [OPT_OUT], lambda file: OptOutRules([OptOut(str(file))])),
    "table of runs": file_reader(
        "a.runs", [RUNS, RUNS_JSONL], lambda file: read_runs(file, {"N": "params", "D": "tokens", "L": "loss"})
    ),
    "scaling law": file_reader("law.json", [LAW], read_law),
    "labels": several("a.labels", [b"x\ta dog\ny\ta cat\n"], lambda path: LabeledLines(path)),
    "xml": several("a.xml", [XML], RteXml),
}  # fmt: skip
