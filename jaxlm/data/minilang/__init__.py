"""A small built-in English-Spanish corpus, written by a synchronous grammar: nothing to download.

`MiniLang` is a source of pairs like any other; `MiniLang().sentences()`, `minimal_pairs` and `analyze` also give trees,
tags and opinions, for the tasks on them.
"""

from jaxlm.data.minilang.corpus import (
    EXAMPLE_SENTENCES,
    MiniLang,
    Sentence,
    analyze,
    assign_split,
    minimal_pairs,
    split_size,
)

__all__ = ["EXAMPLE_SENTENCES", "MiniLang", "Sentence", "analyze", "minimal_pairs", "split_size", "assign_split"]
