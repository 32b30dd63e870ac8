"""A small built-in English-Spanish corpus, written by a synchronous grammar: nothing to download.

`MiniLang` is a source of pairs like any other; `MiniLang().sentences()`, `minimal_pairs` and `analyse` also give trees,
tags and opinions, for the tasks on them.
"""

from jaxlm.data.minilang.corpus import FAMOUS, MiniLang, Sentence, analyse, minimal_pairs, size, split_of

__all__ = ["FAMOUS", "MiniLang", "Sentence", "analyse", "minimal_pairs", "size", "split_of"]
