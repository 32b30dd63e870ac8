"""Bombs and absurd sizes: small files that ask for gigabytes or hours are refused within seconds.

`python -m benchmarks.faults.bombs` gives each bomb to its reader in a process of its own and prints its seconds on a
core (after the imports), the peak of resident memory (with them) and the outcome. A bomb is refused, or read, within
LIMIT_SECONDS and LIMIT_BYTES. No process may use more than ADDRESS_SPACE, or KILLED_AFTER seconds.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.bomb_files import (
    arpa_of_many_ngrams,
    chain_of_schemas,
    deep_json,
    deep_xml,
    ends_of_many_rows,
    entities,
    gzipped_zeros,
    huge_xml,
    many_choices,
    one_line,
    quadratic_entity,
    safetensors_header,
    text,
)  # fmt: skip
from benchmarks.faults.bomb_models import experiment_with, published_with, tokenizer_of_many_ids
from benchmarks.faults.fork_server import ROOT, environment

LIMIT_SECONDS, LIMIT_BYTES = 5.0, 500_000_000
ADDRESS_SPACE, KILLED_AFTER = 4 << 30, 30.0
FILE = "bomb"

Make = Callable[[Path], object]
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Bomb:
    """`make` writes the file FILE (or a folder) at a path, `read` reads it."""

    make: Make
    read: Read


@dataclass(frozen=True)
class Outcome:
    """The outcome of one bomb: its seconds, its peak of resident memory, and words."""

    name: str
    seconds: float
    peak_bytes: int
    words: str

    @property
    def fault(self) -> bool:
        """True unless it was read or refused within the limits."""
        calm = self.words.startswith(("refused", "read"))
        return not calm or self.seconds > LIMIT_SECONDS or self.peak_bytes > LIMIT_BYTES

    def __str__(self) -> str:
        mark = "FAULT" if self.fault else "     "
        return f"{mark} {self.name:36} {self.seconds:6.2f} s {self.peak_bytes / 1e6:6.0f} MB  {self.words}"


def _consume(kind: str, *arguments: object) -> None:
    """Read every row of a source."""
    from benchmarks.faults import readers

    readers.consume(getattr(readers, kind)(*arguments))


def _source(kind: str, *arguments: object) -> Read:
    return lambda path: _consume(kind, str(path), *arguments)


def _documents(unit: str) -> Read:
    return lambda path: _consume("Documents", (str(path),), unit)


def _parallel(path: Path) -> None:
    _consume("ParallelFiles", str(path), str(path))


def _stored(name: str) -> Read:
    """A function of `readers_storage` that reads a path."""

    def read(path: Path) -> None:
        from benchmarks.faults import readers_storage

        getattr(readers_storage, name)(path)

    return read


def _tokenizer(path: Path) -> None:
    from jaxlm.data.tokenizers.loading import load_tokenizer

    path.rename(path.with_name("tokenizer.json"))
    load_tokenizer(path.parent)


def _workdir(path: Path) -> None:
    from jaxlm.workdir import Workdir

    path.rename(path.with_name("experiment.json"))
    Workdir(path.parent).load()


def _published(path: Path) -> None:
    from jaxlm.huggingface.workdir import import_folder

    if path.is_file():
        path.rename(path.with_name("config.json"))
    import_folder(path if path.is_dir() else path.parent, path.with_name("workdir"))


def _shard_index(path: Path) -> None:
    from jaxlm.data.storage.shards import read_index

    path.rename(path.with_name("index.json"))
    read_index(path.parent)


def _shards(path: Path) -> None:
    from benchmarks.faults import readers
    from jaxlm import Shards

    readers.consume(Shards(str(path)))


def _safetensors(path: Path) -> None:
    from jaxlm.huggingface.checkpoint_folder import read_safetensors

    read_safetensors(path)


def _saved_tokenizer(path: Path) -> None:
    from jaxlm.data.tokenizers.loading import load_tokenizer

    tokenizer = load_tokenizer(path)
    _ = tokenizer.special.all_ids, getattr(tokenizer, "pieces", ())


TSV, XML, REGEX, SCHEMA, CHOICES = _source("Tsv", 0, 1), _source("RteXml"), *map(
    _stored, ("_read_regex", "_read_schema", "_read_choices")
)  # fmt: skip
ZEROS, LINE = gzipped_zeros(10), one_line(4)
BOMBS: dict[str, Bomb] = {
    "regex (a?){5000}": Bomb(text("(a?){5000}"), REGEX),
    "regex (a?){1000000}": Bomb(text("(a?){1000000}"), REGEX),
    "regex .{1000000}": Bomb(text(".{1000000}"), REGEX),
    "regex ((a{100}){100}){100}": Bomb(text("((a{100}){100}){100}"), REGEX),
    "regex (a|b)*a(a|b){30}": Bomb(text("(a|b)*a(a|b){30}"), REGEX),
    "regex (((...a*)*)*...": Bomb(text("(" * 5000 + "a" + ")*" * 5000), REGEX),
    "regex a?a?a?...aaa": Bomb(text("a?" * 20_000 + "a" * 20_000), REGEX),
    "regex \\w{4000}": Bomb(text(r"\w{4000}"), REGEX),
    "regex of 10 MB": Bomb(text("abcdefghij" * 1_000_000), REGEX),
    "schema that doubles 40 times": Bomb(chain_of_schemas(40), SCHEMA),
    "schema of itself": Bomb(text('{"$ref": "#"}'), SCHEMA),
    "schema 100,000 deep": Bomb(deep_json(100_000), SCHEMA),
    "schema maxLength 1e9": Bomb(text('{"type": "string", "maxLength": 1000000000}'), SCHEMA),
    "schema minItems 1e7": Bomb(text('{"type": "array", "items": {"type": "null"}, "minItems": 10000000}'), SCHEMA),
    "schema of 20,000 properties": Bomb(
        text(json.dumps({"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(20_000)}})), SCHEMA
    ),
    "schema with an enum of 1e6": Bomb(text(json.dumps({"enum": list(range(1_000_000))})), SCHEMA),
    "schema of 4 GB": Bomb(LINE, SCHEMA),
    "choices: 100,000 lines": Bomb(many_choices(100_000), CHOICES),
    "choices: 5,000,000 lines": Bomb(many_choices(5_000_000), CHOICES),
    "choices: a line of 4 GB": Bomb(LINE, CHOICES),
    "lines: a line of 4 GB": Bomb(LINE, _source("TextFile")),
    "parallel: a line of 4 GB": Bomb(LINE, _parallel),
    "tsv: a line of 4 GB": Bomb(LINE, TSV),
    "jsonl: a line of 4 GB": Bomb(LINE, _source("JsonLines", "a", "b")),
    "columns: a line of 4 GB": Bomb(LINE, _source("ColumnFile")),
    "conllu: a line of 4 GB": Bomb(LINE, _source("ConllU")),
    "labels: a line of 4 GB": Bomb(LINE, _source("LabeledLines")),
    "arpa: a line of 4 GB": Bomb(LINE, _stored("_read_arpa")),
    "metrics: a line of 4 GB": Bomb(LINE, _stored("_read_metrics")),
    "documents (json): a line of 4 GB": Bomb(LINE, _documents("json")),
    "documents (block): a line of 4 GB": Bomb(LINE, _documents("block")),
    "xml of 4 GB": Bomb(LINE, XML),
    "experiment.json of 4 GB": Bomb(LINE, _workdir),
    "tokenizer.json of 4 GB": Bomb(LINE, _tokenizer),
    "config.json of 4 GB": Bomb(LINE, _published),
    "index.json of 4 GB": Bomb(LINE, _shard_index),
    "lines: gzip of 10 GB": Bomb(ZEROS, _source("TextFile")),
    "tsv: gzip of 10 GB": Bomb(ZEROS, TSV),
    "documents: gzip of 10 GB": Bomb(ZEROS, _documents("line")),
    "arpa: gzip of 10 GB": Bomb(ZEROS, _stored("_read_arpa")),
    "xml: gzip of 10 GB": Bomb(ZEROS, XML),
    "xml: entities": Bomb(entities, XML),
    "xml: one long entity": Bomb(quadratic_entity, XML),
    "xml: 10,000,000 deep": Bomb(deep_xml(10_000_000), XML),
    "xml: a pair of 300 MB": Bomb(huge_xml(300_000_000), XML),
    "experiment.json 1e6 deep": Bomb(deep_json(1_000_000), _workdir),
    "tokenizer.json 1e6 deep": Bomb(deep_json(1_000_000), _tokenizer),
    "config.json 1e6 deep": Bomb(deep_json(1_000_000), _published),
    "jsonl 1e6 deep": Bomb(deep_json(1_000_000), _source("JsonLines", "a", "b")),
    "jsonl: a number of 1e7 digits": Bomb(text('{"a": ' + "9" * 10_000_000 + "}"), _source("JsonLines", "a", "b")),
    "arpa: 1e12 unigrams": Bomb(arpa_of_many_ngrams("ngram 1=1000000000000"), _stored("_read_arpa")),
    "arpa: 100,000 orders": Bomb(
        arpa_of_many_ngrams("\n".join(f"ngram {n}=1" for n in range(1, 100_001))), _stored("_read_arpa")
    ),
    "ends of 2**40 rows": Bomb(ends_of_many_rows, _shards),
    "safetensors: header of 1e9": Bomb(safetensors_header(10**9), _safetensors),
    "safetensors: header of 9e7": Bomb(safetensors_header(9 * 10**7), _safetensors),
    "tokenizer of 1e12 ids": Bomb(tokenizer_of_many_ids, _saved_tokenizer),
    **{
        f"experiment: {field} {value:.0e}": Bomb(experiment_with(field, value), _workdir)
        for field, value in (("layers", 10**7), ("width", 10**12), ("vocab", 10**12), ("heads", 10**9))
    },
    **{
        f"config.json: {field} {value:.0e}": Bomb(published_with(field, value), _published)
        for field, value in (("n_layer", 10**7), ("n_embd", 10**12), ("vocab_size", 10**12), ("n_positions", 10**12))
    },
}


def explode(name: str) -> Outcome:
    """Make one bomb and read it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        BOMBS[name].make(path)
        command = [sys.executable, "-m", "benchmarks.faults.bombs", "--inside", name, str(path)]
        began = time.monotonic()
        try:
            result = subprocess.run(
                command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=KILLED_AFTER + 60
            )
        except subprocess.TimeoutExpired:
            return Outcome(name, time.monotonic() - began, 0, "no end")
        try:
            return Outcome(name, *json.loads(result.stdout.splitlines()[-1]))
        except (IndexError, ValueError):
            lines = result.stderr.strip().splitlines()[-1:]
            return Outcome(name, time.monotonic() - began, 0, f"died, code {result.returncode}: {lines}")


def read_inside(name: str, path: Path) -> tuple[float, int, str]:
    """Read a bomb in this process: seconds, peak of resident memory, outcome."""
    import signal

    import benchmarks.faults.readers_storage  # noqa: F401
    import jaxlm.training.metrics_log
    import jaxlm.workdir  # noqa: F401
    from benchmarks.faults.fuzz_worker import peak_bytes
    from jaxlm.errors import UserError

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(int(KILLED_AFTER))
    began = time.process_time()
    try:
        BOMBS[name].read(path)
        words = "read"
    except UserError as refusal:
        words = f"refused: {str(refusal).replace(str(path.parent), '.'):.140}".replace("\n", " ")
    except BaseException as error:
        words = f"{type(error).__name__}: {str(error):.140}".replace("\n", " ")
    return time.process_time() - began, peak_bytes(), words


class NoEnd(BaseException):
    """A bomb has used its time; no reader takes this for an error of a file."""


def _stop(*_: object) -> None:
    raise NoEnd(f"{KILLED_AFTER:.0f} s")


def main(argv: list[str] | None = None) -> list[Outcome]:
    """Print a line a bomb; return the outcomes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bombs", nargs="+", metavar="NAME", default=list(BOMBS), help="names, or parts of names")
    options = parser.parse_args(argv)
    outcomes = []
    for name in BOMBS:
        if any(part in name for part in options.bombs):
            outcomes.append(explode(name))
            print(outcomes[-1], flush=True)
    return outcomes


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        print(json.dumps(read_inside(sys.argv[2], Path(sys.argv[3]))))
    else:
        results = main()
        print(f"{len(results)} bombs, {sum(result.fault for result in results)} faults")
        sys.exit(any(result.fault for result in results))
