"""Constituency parsing: words to trees, by a sequence of brackets or by a label for each word."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns
from jaxlm.data.sources.base import Pair, Pairs, PairSource, WithStats
from jaxlm.data.storage.token_cache import encode_pairs
from jaxlm.data.tokenizers.base import NUM_SPECIALS, Tokenizer
from jaxlm.data.tokenizers.tree_tokens import TreeTokenizer
from jaxlm.decode.beam_config import Beam
from jaxlm.errors import UserError
from jaxlm.grammar.tree_automaton import MAX_WORDS, tree_automaton
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel, cut_to_positions, non_blank
from jaxlm.inference.constraints import ConstrainedSearch, TreeConstraint
from jaxlm.inference.translate import Hypothesis, Search, answer_limits, max_source_tokens, to_answer, translate
from jaxlm.metrics.brackets import UNKNOWN_TAG, score_trees
from jaxlm.metrics.text import perplexity
from jaxlm.tasks.base import EVAL_SPLITS, Task, batch_losses, mean_losses, prefix_valid
from jaxlm.tasks.tagging import Tagging
from jaxlm.trees.linearize import Brackets, Levels
from jaxlm.trees.reader import parse_tree
from jaxlm.trees.tree import TOP, Tree, escape, model_text, split_words

Parses = list[tuple[Tree, Hypothesis | None]]
"""Trees of a sentence, best first; of a task that searches, one without a hypothesis is the flat tree."""


class TreeTask(Task):
    """Base of the tasks from words to trees; their sources give pairs (words, tree on one line)."""

    recipe: ClassVar[str] = ""

    def parse(self, trained: TrainedModel, sentences: Sequence[list[str]], progress: ProgressCallback) -> list[Parses]:
        """The trees over the words of each sentence."""
        raise NotImplementedError

    def best_trees(
        self, trained: TrainedModel, pairs: Sequence[Pair], progress: ProgressCallback = None
    ) -> tuple[list[Tree], list[Tree], int]:
        """The true trees, the best predicted ones, and how many of these are flat."""
        gold = [parse_tree(tree) for _, tree in pairs]
        parses = self.parse(trained, [tree.words() for tree in gold], progress)
        best = [best_first[0] for best_first in parses]
        flat = sum(hypothesis is None for _, hypothesis in best) if self.search else 0
        return gold, [tree for tree, _ in best], flat

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """The figures of `score_trees`, F1 also of the sentences that are not in the training split."""
        pairs, seen = list(self.split(split)), {text for text, _ in self.train}
        gold, best, flat = self.best_trees(trained, pairs, progress)
        new = [row for row, (text, _) in enumerate(pairs) if text not in seen]
        f1 = score_trees([gold[row] for row in new], [best[row] for row in new])["f1"]
        figures = {"flat": flat, "not_in_train": {"sentences": len(new), "f1": f1}}
        return {"split": split, "lines": len(pairs)} | score_trees(gold, best) | figures

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """The predicted and the true trees of the first `count` test sentences."""
        for gold, best in zip(*self.best_trees(trained, list(islice(self.test, count)))[:2], strict=True):
            yield f"{best} (right: {gold})"

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """A tree on one line for each line of words between white space; spans count words from 0, without TOP."""
        answers = [Answer("", {"source": line, "prediction": "", "words": [], "spans": []}) for line in lines]
        indices = non_blank(lines)
        parses = self.parse(trained, [split_words(lines[index]) for index in indices], progress)
        for index, best_first in zip(indices, parses, strict=True):
            tree = best_first[0][0]
            hypotheses = [replace(item, text=str(parsed)) for parsed, item in best_first if item]
            answer = to_answer(lines[index], hypotheses) if hypotheses else Answer(str(tree))
            spans = [list(span) for span in tree.spans()[1:]]
            record: dict[str, Any] = {"source": lines[index], "prediction": str(tree), "words": tree.words()}
            record |= {"spans": spans} | ({"flat": True} if self.search and not hypotheses else {})
            answers[index] = replace(answer, json=answer.json | record)
        return answers


@dataclass(frozen=True)
class Parsing(TreeTask):
    """Words to a sequence of brackets, for the tokenizer `TreeTokens`. Each answer is a tree over exactly the words.

    Attributes:
      train, valid, test: sources such as `Trees`; `extra_tests` are further test sets by name.
      brackets: the sequence of a tree.
      search: how answers are decoded; their limit is 4 ids a word and 24 more.
      valid_examples: number of validation trees that are decoded during training, greedily, for F1.
    """

    train: PairSource
    valid: PairSource
    test: PairSource
    extra_tests: dict[str, PairSource] = field(default_factory=dict)
    brackets: Brackets = Brackets()
    search: Search = Search(Beam(num_beams=1), max_len_ratio=4.0, max_len_extra=24)
    valid_examples: int = 200

    eval_only_fields: ClassVar[tuple[str, ...]] = (*EVAL_SPLITS, "search", "valid_examples")
    input_kind: ClassVar[str] = "source"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity", "f1")

    def max_input_tokens(self, model: Any) -> int:
        return 0  # no line is cut

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError if the tokenizer has no symbols, or the model other vocabularies or leaves than it."""
        if not isinstance(tokenizer, TreeTokenizer):
            raise UserError(f"parsing needs the tokenizer TreeTokens, found {type(tokenizer).__name__}")
        aligned = (NUM_SPECIALS, NUM_SPECIALS + tokenizer.num_leaves) if tokenizer.mark_words else None
        for name, value in (("aligned", aligned), ("source_vocab", tokenizer.side("source").vocab_size)):
            if (actual := getattr(model, name, None)) != value:
                raise UserError(f"the model has {name} = {actual}, its tokenizer needs {value}: set it in the model")

    def texts(self) -> Iterator[str]:
        """Sentence and symbols of each training tree, in turn."""
        for pair in _SymbolPairs(self.train, self.brackets):
            yield from pair

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        """Columns "source" and "target"."""
        return encode_pairs(_SymbolPairs(WithStats(self.train, read_stats), self.brackets), tokenizer, folder)

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        """Loss and perplexity of all validation trees, F1 of the first `valid_examples`."""
        pairs = list(self.valid)
        columns = encode_pairs(_SymbolPairs(pairs, self.brackets), trained.tokenizer)
        columns, _ = cut_to_positions(trained.model, columns)
        figures = mean_losses(batch_losses(trained, columns, objective, batch_tokens))
        figures["perplexity"] = perplexity(figures["nll"])
        greedy = replace(self, search=replace(self.search, beam=Beam(num_beams=1)))
        gold, best, _ = greedy.best_trees(trained, pairs[: self.valid_examples])
        return prefix_valid(figures | {"f1": score_trees(gold, best)["f1"]})

    def parse(self, trained: TrainedModel, sentences: Sequence[list[str]], progress: ProgressCallback) -> list[Parses]:
        """The trees over the words of each sentence; a flat one if the model does not reach its end."""
        if self.search.constraint:
            raise UserError("the answers of a parser are trees already: leave the constraint on the text out")
        self.check_model(trained.model, tokenizer := trained.tokenizer)
        dfa = tree_automaton(tokenizer.side("target").symbols, tokenizer.special.eos)  # type: ignore[attr-defined]
        search = ConstrainedSearch(**vars(self.search), constraint=TreeConstraint(dfa))
        texts = [model_text(words) for words in sentences]
        tokens_N = np.array([len(ids) + 1 for ids in tokenizer.encode(texts)], np.int64)
        words_N = np.array([len(words) for words in sentences], np.int64)
        reached_N = (words_N <= MAX_WORDS) & (tokens_N <= max_source_tokens(trained.model, search))
        rows = np.flatnonzero(reached_N & (answer_limits(trained.model, search, tokens_N) >= words_N + 3)).tolist()
        leaves = [[escape(word) for word in words] for words in sentences]
        flat = (Tree(TOP, (Tree("FRAG", tuple(Tree(UNKNOWN_TAG, (), word) for word in row)),)) for row in leaves)
        parses: list[Parses] = [[(tree, None)] for tree in flat]
        for row, hypotheses in zip(rows, translate(trained, [texts[i] for i in rows], search, progress), strict=True):
            pairs = ((self.brackets.decode(item.text.split(), leaves[row]), item) for item in hypotheses)
            parses[row] = [(tree, item) for tree, item in pairs if tree] or parses[row]
        return parses


@dataclass(frozen=True)
class TreeTagging(TreeTask, Tagging):
    """Words to as many labels that are a tree (`Levels`); `labels` are those of the training trees, `level_labels`."""

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    def _encode_label(self, pairs: Pairs, index: int, text: str, label: str, strict: bool = True) -> list[int]:
        return [self._ids.get(name, -1) for name in Levels().encode(parse_tree(label))]  # -1: not in training

    def _valid_metrics(self, gold: Any, predicted: Any) -> dict[str, float]:
        return {"accuracy": 100.0 * float(np.mean(gold.flat == predicted.flat))}

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        """Loss, accuracy of the labels, and F1 of the trees."""
        gold, best, _ = self.best_trees(trained, list(self.valid))
        return super().validate(trained, objective, batch_tokens) | {"valid/f1": score_trees(gold, best)["f1"]}

    def parse(self, trained: TrainedModel, sentences: Sequence[list[str]], progress: ProgressCallback) -> list[Parses]:
        """One tree over the words of each sentence."""
        rows = self._predict_texts(trained, list(map(model_text, sentences)), progress) if sentences else ()
        names = [[self.labels[label] for label in row] for row in rows]
        pairs = zip(names, sentences, strict=True)
        return [[(Levels().decode(labels, list(map(escape, words))), None)] for labels, words in pairs]


@dataclass(frozen=True)
class _SymbolPairs:
    """Pairs (words, tree) as (words, symbols)."""

    pairs: Any
    brackets: Brackets

    def __iter__(self) -> Iterator[Pair]:
        return ((text, " ".join(self.brackets.encode(parse_tree(tree)))) for text, tree in self.pairs)

    def describe(self) -> str:
        return self.pairs.describe()
