"""Speed of the rules for corpora on one core, compared with DataTrove if it is installed; and builds that are killed.

python -m benchmarks.corpus                      MB/s of each rule and of the chain
python -m benchmarks.corpus --kill 100           as many SIGKILLs at random times: one digest of the output
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
from pathlib import Path
from typing import Any

from jaxlm.corpora.corpus import Corpus, CorpusSource
from jaxlm.corpora.document import Document, Drop
from jaxlm.corpora.duplicates import Duplicates
from jaxlm.corpora.filters import C4, FineWeb, GopherQuality, GopherRepetition
from jaxlm.corpora.passes import Builder
from jaxlm.corpora.personal import Personal
from jaxlm.corpora.write import build_corpus
from jaxlm.data.files import ReadStats
from jaxlm.data.tokenizers.simple import Bytes

SAMPLE = CorpusSource("c4", ("c4_sample/c4_demo.jsonl",), "json")
PERSONAL = Personal(("email", "ip"))  # the kinds of DataTrove
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


def build(folder: Path, processes: int) -> None:
    """The corpus of the sample, in parts of 40 kB."""
    corpus = Corpus((SAMPLE,), (GopherQuality(), GopherRepetition(), PERSONAL, Duplicates()))
    build_corpus(Builder(corpus, folder, processes, 40_000), lambda texts: Bytes().fit(iter(texts)), ReadStats())


def digest(folder: Path) -> str:
    """Of the names and contents of all files."""
    total = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        total.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return total.hexdigest()[:16]


def kill(count: int) -> None:
    """Kill a build as many times at random, with one and two processes; print the digests of the results."""
    draw, digests, killed = random.Random(0), set(), 0
    with tempfile.TemporaryDirectory() as name:
        build(Path(name) / "whole", 1)
        digests.add(digest(Path(name) / "whole"))
        number = 0
        while killed < count:
            number += 1
            folder, processes = Path(name) / str(number), 1 + number % 2
            command = [sys.executable, "-m", "benchmarks.corpus", "--build", str(folder), "--processes", str(processes)]
            while True:
                process = subprocess.Popen(command, start_new_session=True)
                try:
                    process.wait(draw.uniform(0.4, 3.0) if killed < count else None)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    killed += 1
                    continue
                break
            digests.add(digest(folder))
    print(f"{killed} kills in {number} builds with 1 and 2 processes: {len(digests)} digest(s), {sorted(digests)}")


def main() -> None:
    """Run what the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--build", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    if options.build:
        build(options.build, options.processes)
    elif options.kill:
        kill(options.kill)
    else:
        speed(options.repeats)


if __name__ == "__main__":
    main()
