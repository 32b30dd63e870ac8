"""Speed of the rules for corpora on one core, compared with DataTrove if it is installed; and builds that are killed.

python -m benchmarks.corpus                      MB/s of each rule and of the chain
python -m benchmarks.corpus --kill 100           as many SIGKILLs at random times: one digest of the output
python -m benchmarks.corpus --datatrove 3        as many tasks of DataTrove: the digest of the output, and of ours
python -m benchmarks.corpus --pool 2             pass 1 by several processes and by one: times faster (idle machine)
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxlm.corpora.corpus import Corpus, CorpusSource
from jaxlm.corpora.datatrove import map_share, prepare_write
from jaxlm.corpora.document import Document, Drop
from jaxlm.corpora.duplicates import Duplicates
from jaxlm.corpora.filters import C4, FineWeb, GopherQuality, GopherRepetition
from jaxlm.corpora.passes import Builder
from jaxlm.corpora.personal import Personal
from jaxlm.corpora.write import KeptTexts, build_corpus
from jaxlm.data.files import ReadStats, read_lines
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.simple import Bytes

SAMPLE = CorpusSource("c4", ("c4_sample/c4_demo.jsonl",), "json")
PERSONAL = Personal(("email", "ip"))  # the kinds of DataTrove
PART_BYTES_OF_POOL = 1 << 20
RULES = (GopherRepetition(), GopherQuality(), C4(words=3, sentences=5), FineWeb(), PERSONAL)


def rate(function: Callable[[str], Any], texts: list[str]) -> float:
    """MB/s of processor time, so that other processes do not count."""
    start = time.process_time()
    for text in texts:
        function(text)
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - start)


def chain(text: str) -> None:
    """All rules on one document, as pass 1 applies them, and its signature."""
    document: Document | Drop = Document("0", text)
    for step in RULES:
        document = step.apply(document)
        if isinstance(document, Drop):
            return
    Duplicates().signature(document)


def datatrove() -> Iterator[tuple[str, Callable[[str], Any]]]:
    """The same rules of DataTrove."""
    from datatrove.data import Document as Theirs
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.formatters import PIIFormatter

    filters = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter()]
    masks = PIIFormatter()
    minhash = MinhashDedupSignature("unused", MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8))

    def sign(text: str) -> None:
        shingles = minhash.get_shingles(text)
        if shingles.size:
            minhash.get_signature(shingles)

    def all_of(text: str) -> None:
        document = Theirs(text, "0")
        for step in filters:
            if step.filter(document) is not True:
                return
        sign(masks.format(document.text))

    for step in filters:
        yield type(step).__name__, lambda text, step=step: step.filter(Theirs(text, "0"))
    yield "PIIFormatter", masks.format
    yield "MinHash", sign
    yield "chain", all_of


def speed(repeats: int) -> None:
    """Print MB/s of every rule and of the chain."""
    texts = [document.text for document in SAMPLE.records(ReadStats())]
    for step in RULES:
        print(
            f"{type(step).__name__:26} {rate(lambda text, step=step: step.apply(Document('0', text)), texts):8.2f} MB/s"
        )
    print(f"{'MinHash':26} {rate(lambda text: Duplicates().signature(Document('0', text)), texts):8.2f} MB/s")
    ours = rate(chain, texts * repeats)
    print(f"{'chain':26} {ours:8.2f} MB/s")
    try:
        for name, function in datatrove():
            theirs = rate(function, texts)
            print(f"DataTrove {name:26} {theirs:8.2f} MB/s")
        print(f"chain: {ours / theirs:.1f} x DataTrove")
    except ImportError as error:
        print(f"DataTrove cannot be imported ({error}): pip install datatrove")


def builder_of(folder: Path, processes: int = 1) -> Builder:
    """The corpus of the sample, in parts of 40 kB."""
    return Builder(
        Corpus((SAMPLE,), (GopherQuality(), GopherRepetition(), PERSONAL, Duplicates())), folder, processes, 40_000
    )


def fit_bytes(texts: KeptTexts) -> Tokenizer:
    """The tokenizer of the sample's corpus."""
    return Bytes().fit(iter(texts))


def build(folder: Path, processes: int) -> None:
    """Build the corpus of the sample."""
    build_corpus(builder_of(folder, processes), fit_bytes, ReadStats())


def with_datatrove(tasks: int) -> None:
    """Passes 1 and 3 by local tasks of DataTrove, then the command; print the digests with and without it."""
    from datatrove.executor import LocalPipelineExecutor

    with tempfile.TemporaryDirectory() as name:
        build(Path(name) / "ours", 1)
        builder = builder_of(Path(name) / "theirs")
        LocalPipelineExecutor([partial(map_share, builder)], tasks, logging_dir=f"{name}/map").run()
        parts = len(list(builder.parts_folder.glob("*.json")))
        write = prepare_write(builder, fit_bytes)
        LocalPipelineExecutor([write], tasks, logging_dir=f"{name}/write").run()
        shards = len(list(builder.folder.glob("[0-9]*.json")))
        made: list[bool] = []
        note: Callable[[Any, bool], None] = lambda record, kept: made.append(not kept)  # noqa: E731
        build_corpus(builder, fit_bytes, ReadStats(), note, note)
        digests = [digest(Path(name) / folder) for folder in ("ours", "theirs")]
    print(f"{tasks} tasks of DataTrove made {parts} parts and {shards} shards, {sum(made)} were left to jaxlm prepare")
    print(f"digests: one process {digests[0]}, DataTrove {digests[1]}, equal: {digests[0] == digests[1]}")


def digest(folder: Path) -> str:
    """Of the names and contents of all files."""
    total = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        total.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return total.hexdigest()[:16]


def kill(count: int) -> None:
    """Kill a build as many times at random, with one, two and four processes; print the digests of the results."""
    draw, digests, killed = random.Random(0), set(), 0
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "benchmarks.corpus", "--build", f"{name}/whole"]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        digests.add(digest(Path(name) / "whole"))
        number = 0
        while killed < count:
            number += 1
            folder, processes = Path(name) / str(number), (1, 2, 4)[number % 3]
            command = [sys.executable, "-m", "benchmarks.corpus", "--build", str(folder), "--processes", str(processes)]
            while True:
                process = subprocess.Popen(command, start_new_session=True)
                try:
                    process.wait(draw.uniform(0.3, 1.3) * seconds if killed < count else None)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    killed += 1
                    continue
                break
            digests.add(digest(folder))
    print(f"{killed} kills in {number} builds with 1, 2 and 4 processes: {len(digests)} digest(s), {sorted(digests)}")


def pool(processes: int, repeats: int) -> None:
    """Time pass 1 over the sample, `repeats` times as long, with one process and with several, in turn; print both."""
    lines = "".join(f"{line}\n" for line in read_lines(SAMPLE.paths[0])).encode()
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "long.jsonl").write_bytes(lines * repeats)
        corpus = Corpus((replace(SAMPLE, paths=(str(Path(name) / "long.jsonl"),)),), (*RULES, Duplicates()))
        seconds: dict[int, list[float]] = {1: [], processes: []}
        for round_ in range(3):
            for count in seconds:
                builder = Builder(corpus, Path(name) / f"{count}-{round_}", count, PART_BYTES_OF_POOL)
                builder.folder.mkdir()
                start = time.perf_counter()
                builder.map_parts(ReadStats(), lambda record, kept: None)
                seconds[count].append(time.perf_counter() - start)
    one, several = (min(seconds[count]) for count in (1, processes))
    size = len(lines) * repeats / 1e6
    speeds = f"1 process {size / one:.2f} MB/s, {processes} processes {size / several:.2f} MB/s: {one / several:.2f} x"
    print(f"pass 1, {size:.1f} MB: {speeds} (the best of three rounds; {len(os.sched_getaffinity(0))} cores)")


def main() -> None:
    """Run what the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--datatrove", type=int, default=0)
    parser.add_argument("--pool", type=int, default=0)
    parser.add_argument("--build", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    if options.build:
        build(options.build, options.processes)
    elif options.kill:
        kill(options.kill)
    elif options.datatrove:
        with_datatrove(options.datatrove)
    elif options.pool:
        pool(options.pool, options.repeats)
    else:
        speed(options.repeats)


if __name__ == "__main__":
    main()
