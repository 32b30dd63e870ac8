"""Parsing without training: trees from untrained models, and two baselines.

    python -m benchmarks.parsing well_formed [--lines 10000]    # every answer is a tree over the words
    python -m benchmarks.parsing right_branching --split dev    # S over VPs, the final full stop outside
    python -m benchmarks.parsing pcfg --split dev               # a treebank grammar over gold tags, CKY

`--treebank` is gum (default) or craft. The grammar reads gold tags: an easier task than that of the others.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace

import jax
import numpy as np

from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.data.tokenizers.tree_tokens import TreeTokens
from jaxlm.decode.beam_config import Beam
from jaxlm.inference.base import TrainedModel
from jaxlm.metrics.brackets import score_trees
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.properties import abstract_params
from jaxlm.nn.weights.weight_formats import PRECISIONS
from jaxlm.pipeline.pipeline import cast_for_inference, prepare_params
from jaxlm.tasks.parsing import Parsing
from jaxlm.trees.reader import Trees, parse_tree
from jaxlm.trees.tree import TOP, Tree

FILES = {
    ("gum", "train"): "gum_const/gum.train.ptb.gz",
    ("gum", "dev"): "gum_const/gum.dev.ptb.gz",
    ("gum", "test"): "gum_const/gum.test.ptb.gz",
    ("craft", "train"): "craft_const/craft.train.ptb.gz",
    ("craft", "dev"): "craft_const/craft.dev.ptb.gz",
}
NO_SCORE = -1e9


def well_formed(treebank: str, split: str, lines: int, beams: list[int]) -> dict:
    """The share of trees with exactly the words, of an untrained model at temperature 2, in two precisions."""
    train = Trees(FILES[treebank, "train"])
    task = Parsing(train, train, train)
    texts = list(task.texts())
    symbols = len({symbol for line in texts[1::2] for symbol in line.split()})
    tokenizer = TreeTokens(symbols + 4, SentencePiece(1000, "bpe")).fit(texts)
    model = EncoderDecoder(
        symbols + 4, 16, 2, 32, 1, 1, norm="pre", tie_embeddings="none", source_vocab=1000, aligned=(4, 5)
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), abstract_params(model))
    sentences = [parse_tree(tree).words() for _, tree in train][:lines]
    record: dict = {"lines": len(sentences)}
    for precision in ("float32", "int8"):
        assert precision in PRECISIONS
        cast_model, cast = cast_for_inference(model, params, precision)
        trained = TrainedModel(cast_model, prepare_params(cast_model, cast), tokenizer)
        for num_beams in beams:
            search = replace(task.search, beam=Beam(num_beams=num_beams, temperature=2.0))
            clock = time.perf_counter()
            parses = replace(task, search=search).parse(trained, sentences, None)
            good = sum(
                hypothesis is not None and tree.words() == words
                for ((tree, hypothesis), *_), words in zip(parses, sentences, strict=True)
            )
            name = f"{precision}, beam {num_beams}"
            record[name] = {"percent": 100 * good / len(sentences), "seconds": round(time.perf_counter() - clock, 1)}
            print(name, record[name], file=sys.stderr, flush=True)
    return record


def right_branching(tree: Tree) -> Tree:
    """S over the words, VPs to the right, the final full stop outside of the VPs."""
    leaves = tree.leaves()
    final = [leaf for leaf in leaves[-1:] if leaf.label == "." and len(leaves) > 1]
    body = leaves[: len(leaves) - len(final)]
    node = body[-1]
    for leaf in reversed(body[1:-1]):
        node = Tree("VP", (leaf, node))
    first = (body[0], node) if len(body) > 1 else (body[0],)
    return Tree(TOP, (Tree("S", (*first, *final)),))


class TreebankGrammar:
    """A PCFG of binarized rules, vertical order 2 (labels with their parents), horizontal order 2."""

    def __init__(self, trees: list[Tree]) -> None:
        self.unary: dict = defaultdict(Counter)
        self.binary: dict = defaultdict(Counter)
        for tree in trees:
            self._count(tree, "")
        total = {label: self.unary[label].total() + self.binary[label].total() for label in {*self.unary, *self.binary}}
        self.rules_of_left: dict = defaultdict(lambda: defaultdict(list))
        self.parents_of: dict = defaultdict(list)
        for label, count in total.items():
            for pair, number in self.binary[label].items():
                self.rules_of_left[pair[0]][pair[1]].append((label, math.log(number / count)))
            for child, number in self.unary[label].items():
                self.parents_of[child].append((label, math.log(number / count)))

    def _count(self, tree: Tree, parent: str) -> str:
        if tree.word is not None:
            return tree.label
        label = f"{tree.label}^{parent}"
        names = [self._count(child, tree.label) for child in tree.children]
        left = label
        while len(names) > 2:  # @NP^S|previous two siblings
            rest = f"@{label}|{'|'.join(child for child in names[:2])[-60:]}"
            self.binary[left][names[0], rest] += 1
            left, names = rest, names[1:]
        (self.binary if len(names) == 2 else self.unary)[left][tuple(names) if len(names) == 2 else names[0]] += 1
        return label

    def parse(self, tree: Tree) -> Tree | None:
        """The best tree over the gold tags of a sentence."""
        leaves = tree.leaves()
        size = len(leaves)
        cells: dict = {}
        for end in range(1, size + 1):
            for start in range(end - 1, -1, -1):
                cell: dict = {leaves[start].label: (0.0, leaves[start])} if end == start + 1 else {}
                for middle in range(start + 1, end):
                    for left, (left_score, _) in cells[start, middle].items():
                        rules = self.rules_of_left.get(left, {})
                        for right in rules.keys() & cells[middle, end].keys():
                            both_score = left_score + cells[middle, end][right][0]
                            for label, score in rules[right]:
                                score += both_score
                                if score > cell.get(label, (NO_SCORE,))[0]:
                                    cell[label] = score, (middle, left, right)
                waiting = list(cell)
                while waiting:
                    child = waiting.pop()
                    for label, score in self.parents_of.get(child, ()):
                        score += cell[child][0]
                        if score > cell.get(label, (NO_SCORE,))[0] + 1e-9:
                            cell[label] = score, child
                            waiting.append(label)
                best = max((score for score, _ in cell.values()), default=0.0)
                cells[start, end] = {label: item for label, item in cell.items() if item[0] > best - 12}
        if f"{TOP}^" not in cells[0, size]:
            return None
        return self._build(cells, 0, size, f"{TOP}^")[0]

    def _build(self, cells: dict, start: int, end: int, label: str) -> list[Tree]:
        _, how = cells[start, end][label]
        if isinstance(how, Tree):
            return [how]
        if isinstance(how, str):
            parts = self._build(cells, start, end, how)
        else:
            middle, left, right = how
            parts = [*self._build(cells, start, middle, left), *self._build(cells, middle, end, right)]
        return parts if label.startswith("@") else [Tree(label.partition("^")[0], tuple(parts))]


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("well_formed", "right_branching", "pcfg"))
    parser.add_argument("--treebank", choices=("gum", "craft"), default="gum")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5, 21])
    parser.add_argument("--max-words", type=int, default=0, help="leave longer sentences out (0: none)")
    options = parser.parse_args()
    if options.what == "well_formed":
        print(json.dumps(well_formed(options.treebank, options.split, options.lines, options.beams)))
        return
    gold = [parse_tree(tree) for _, tree in Trees(FILES[options.treebank, options.split])]
    gold = [tree for tree in gold if len(tree.leaves()) <= (options.max_words or len(tree.leaves()))][: options.lines]
    if options.what == "right_branching":
        guess = right_branching
    else:
        guess = TreebankGrammar([parse_tree(tree) for _, tree in Trees(FILES[options.treebank, "train"])]).parse
    scores = score_trees(gold, [guess(tree) for tree in gold])
    names = ("f1", "recall", "precision", "f1_all", "sentences", "skipped", "by_length", "signature")
    print(json.dumps({name: scores[name] for name in names}))


if __name__ == "__main__":
    main()
