"""Passes 1 and 3 of a corpus as steps of DataTrove (Penedo et al. 2024): tasks on Slurm or Ray, which share a folder.

    LocalPipelineExecutor([partial(map_share, builder)], tasks=3).run()
    LocalPipelineExecutor([prepare_write(builder, make_tokenizer)], tasks=3).run()

and then `jaxlm prepare MODULE:NAME --out D`, which finds all parts and shards. A step is a function of a stream, of the
rank of its task and of their number: a task makes the parts, or shards, of its own numbers, as one process would.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from jaxlm.corpora.passes import Builder, map_part
from jaxlm.corpora.write import KeptTexts, reduce_corpus
from jaxlm.data.files import ReadStats
from jaxlm.data.storage.shards import open_or_create_folder, reusable_record, split_into_shards, write_shard
from jaxlm.data.tokenizers.base import Tokenizer

Step = Callable[[Iterable[Any] | None, int, int], Iterator[Any]]


def map_share(builder: Builder, stream: Iterable[Any] | None, rank: int, world_size: int) -> Iterator[Any]:
    """Pass 1. Raises UserError for faults of the sources."""
    builder.corpus.check()
    builder.parts_folder.mkdir(parents=True, exist_ok=True)
    for part in islice(builder.read_parts(ReadStats()), rank, None, world_size):
        if builder.existing(part) is None:
            map_part(part, builder)
    yield from stream or ()


def prepare_write(builder: Builder, make_tokenizer: Callable[[KeptTexts], Tokenizer]) -> Step:
    """Do pass 2 and make the tokenizer; the step of pass 3."""
    texts, _ = reduce_corpus(builder, ReadStats())
    tokenizer = make_tokenizer(texts)
    open_or_create_folder(builder.folder, tokenizer, texts.describe())
    return partial(_write_share, texts, tokenizer)


def _write_share(texts: KeptTexts, tokenizer: Tokenizer, stream: Any, rank: int, world_size: int) -> Iterator[Any]:
    folder, shards = texts.builder.folder, split_into_shards(texts, texts.builder.part_bytes)
    for shard in islice(shards, rank, None, world_size):
        if reusable_record(shard, folder, tokenizer) is None:
            write_shard(shard, folder, tokenizer)
    yield from stream or ()
