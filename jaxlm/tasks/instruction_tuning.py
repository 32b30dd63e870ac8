"""The task of supervised fine-tuning on dialogues: learn the answers and their ends, given all that is before them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxlm import runtime
from jaxlm.data.batching.eval_batches import round_up_size
from jaxlm.data.chat.dialogue import Dialogue, InvalidRecord
from jaxlm.data.chat.encoding import ChatFormat, DialogueEncoder, cut_prompt, dialogue_columns
from jaxlm.data.chat.template import PLAIN
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns
from jaxlm.data.sources.base import WithStats
from jaxlm.data.storage.token_cache import cached_columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_REASONS, FINISH_STOP
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.grammar.constraint import Constraint
from jaxlm.inference.base import (
    EVAL_BATCH_TOKENS,
    Answer,
    ProgressCallback,
    TrainedModel,
    cut_to_positions,
    non_blank,
    to_single_line,
)
from jaxlm.inference.constraints import compile_constraint
from jaxlm.inference.generate import GenerationDefaults
from jaxlm.metrics.text import perplexity
from jaxlm.models.properties import max_target_positions
from jaxlm.objectives.next_token import NextToken
from jaxlm.tasks.base import EVAL_SPLITS, ChatTask, batch_losses, mean_losses, prefix_valid, sum_losses
from jaxlm.types import Batch


@dataclass(frozen=True)
class AnsweringTask(ChatTask):
    """Base of the tasks whose model answers. `predict` answers a question a line.

    Attributes:
      generation: the sampler (greedy search unless it says otherwise) and the limits of answers.
      batch_tokens: positions per batch of evaluation and of `score`.
    """

    generation: GenerationDefaults = GenerationDefaults(Sampler(temperature=0.0), max_tokens=200)
    batch_tokens: int = 8192

    def texts(self) -> Iterator[str]:
        """The pieces of the training dialogues, as the template writes them."""
        template = self.chat_template or PLAIN
        for dialogue in self.train:
            yield "".join(piece.text for piece in template.pieces(dialogue))

    def answer(
        self, trained: TrainedModel, prompts: Sequence[Dialogue], seed: int = 0, allowed: Constraint | None = None
    ) -> list[tuple[str, str]]:
        """The answer of the model to each dialogue that waits for one, and the reason of its end; no position for it
        leaves it empty. A sampled answer depends on the seed and on the number of its prompt, not on its batch.
        """
        grammar, compiled = None, allowed and compile_constraint(allowed, trained.tokenizer, continues=True)
        encoder, masks = self.encoder(trained.tokenizer), self.generation.logit_masks
        masks = replace(masks, suppress_tokens=(*masks.suppress_tokens, *trained.tokenizer.special.suppress))
        config = GenerationConfig(self.generation.new_tokens, encoder.stop_ids, self.generation.sampler, masks)
        answers: dict[int, tuple[str, str]] = {}
        ids_of_prompts, positions = encoder.encode_prompts(prompts), max_target_positions(trained.model)
        width_N = np.array([round_up_size(len(ids)) for ids in ids_of_prompts])
        for width in np.unique(width_N).tolist():  # few shapes: each one is compiled
            chosen = np.flatnonzero(width_N == width)
            rows = min(max(EVAL_BATCH_TOKENS // (width + config.length) // 8, 1) * 8, round_up_size(len(chosen)))
            for first in range(0, len(chosen), rows):
                runtime.between_batches()
                row_B = chosen[first : first + rows].tolist()
                prompt_BP, valid_BP = np.zeros((rows, width), np.int32), np.zeros((rows, width), bool)
                limit_B, line_B = np.zeros(rows, np.int32), np.zeros(rows, np.uint32)
                valid_BP[:, -1] = True  # the rows that only fill the shape
                for row, number in enumerate(row_B):
                    size = len(ids_of_prompts[number])
                    prompt_BP[row, width - size :], valid_BP[row, width - size :] = ids_of_prompts[number], True
                    room = config.length if positions is None else np.clip(positions - size + 1, 0, config.length)
                    limit_B[row], line_B[row] = room, number
                batch = Batch(target_BT=prompt_BP, target_valid_BT=valid_BP)
                if compiled:
                    texts = [prompts[number].turns[-1].content for number in row_B] + [""] * (rows - len(row_B))
                    grammar = compiled.grammar(prompt_BP, valid_BP, limit_B, texts)
                request = DecodeRequest(batch, prompt_BP, valid_BP, limit_B, None, grammar, seed, line_B)
                output = generate(trained.model, trained.params, request, config)
                tokens_BT, length_B, reason_B = map(np.asarray, (output.tokens_BT, output.length_B, output.reason_B))
                for row, number in enumerate(row_B):
                    ids = tokens_BT[row, : length_B[row] - (reason_B[row] == FINISH_STOP)].tolist()
                    answers[number] = trained.tokenizer.decode([ids])[0], FINISH_REASONS[reason_B[row]]
        return [answers[number] for number in range(len(prompts))]

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """The last turns before the answers of the first test dialogues, and the model's answers."""
        prompts = [row.prompt for row in islice(self.test, count)]
        for prompt, (text, _) in zip(prompts, self.answer(trained, prompts), strict=True):
            yield f"{to_single_line(prompt.turns[-1].content)} -> {to_single_line(text)}"

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The answer to each line as a turn of the user."""
        answers = [Answer("", {"text": "", "reason": "none"}) for _ in lines]
        indices, chat = non_blank(lines), ChatFormat(self.chat_template or PLAIN)
        written = self.answer(trained, [chat.dialogue(lines[index]) for index in indices])
        for index, (text, reason) in zip(indices, written, strict=True):
            answers[index] = Answer(to_single_line(text), {"text": text.strip(), "reason": reason})
        if progress:
            progress(len(lines))
        return answers


@dataclass(frozen=True)
class InstructionTuning(AnsweringTask):
    """Dialogues, of which the loss covers the trained answers and their ends.

    Attributes:
      cut_prompts_to: rows that are longer, in tokens, lose the beginning of their prompt; 0: the batching drops or cuts
        rows that are too long for it.
      answered: dialogues of a split that `evaluate` answers.
      answer_pattern: a regular expression; `evaluate` counts the answers that match it as a whole.
    """

    cut_prompts_to: int = 0
    answered: int = 500
    answer_pattern: str = ""

    eval_only_fields: ClassVar[tuple[str, ...]] = (
        *EVAL_SPLITS, "batch_tokens", "generation", "answered", "answer_pattern"
    )  # fmt: skip
    batch_columns: ClassVar[tuple[str, ...]] = ("target", "loss_mask")
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity")

    def __post_init__(self) -> None:
        try:
            re.compile(self.answer_pattern)
        except re.error as error:
            raise UserError(f"answer_pattern {self.answer_pattern!r} is not a regular expression: {error}") from None

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        """The columns "target" and "loss_mask"; `read_stats` also counts what the encoding changed."""
        encoder, stats, total = self.encoder(tokenizer), ReadStats(), 0
        held_out = set(self.valid)

        def encode(block: list[Dialogue]) -> Columns:
            nonlocal total
            first, total = total + 1, total + len(block)
            if count := sum(dialogue in held_out for dialogue in block):
                stats.note("also in the validation split", count)
            try:
                return self._encode(encoder, block, stats, first)
            except InvalidRecord as error:
                raise UserError(f"{self.train.describe()}, {error}") from None

        recipe = f"InstructionTuning {self.chat_template} {self.cut_prompts_to} {tokenizer.fingerprint}"
        columns = cached_columns(WithStats(self.train, read_stats), encode, recipe, folder)
        mask = columns["loss_mask"].flat
        if not (trained := np.count_nonzero(mask)):
            raise UserError(f"{self.train.describe()}: no label is trained. Look at `jaxlm show --example`.")
        for what, count in stats.notes.items():
            read_stats.note(what, count)
        read_stats.note("% of the labels trained", max(round(100 * trained / len(mask)), 1))
        return columns

    def _encode(
        self, encoder: DialogueEncoder, dialogues: Sequence[Dialogue], stats: ReadStats, first: int = 1
    ) -> Columns:
        rows = encoder.encode(dialogues, stats, first)
        for index, row in enumerate(rows):
            if self.cut_prompts_to and len(row.loss_mask) > self.cut_prompts_to and row.loss_mask.any():
                rows[index] = encoder.encode([cut_prompt(encoder, dialogues[index], self.cut_prompts_to)])[0]
                stats.note("prompts cut at their beginning")
        return dialogue_columns(rows, encoder.tokenizer)

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        """Loss per trained label (the value that training minimizes), and the perplexity of the answers."""
        columns, _ = self._eval_columns(trained, list(self.valid))
        figures = mean_losses(batch_losses(trained, columns, objective, self.batch_tokens))
        return prefix_valid(figures | {"perplexity": perplexity(figures["nll"])})

    def _eval_columns(self, trained: TrainedModel, dialogues: Sequence[Dialogue]) -> tuple[Columns, np.ndarray]:
        """The columns of dialogues within the positions of the model, and which rows were cut."""
        columns = self._encode(self.encoder(trained.tokenizer), dialogues, ReadStats())
        return cut_to_positions(trained.model, columns)

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """The perplexity of the answers, and of what the model answers itself to the first `answered` dialogues:
        percent that it ended by itself, that are the reference, and that match `answer_pattern`.
        """
        dialogues = list(self.split(split))
        columns, is_cut_N = self._eval_columns(trained, dialogues)
        _, nll, count = sum_losses(batch_losses(trained, columns, NextToken(), self.batch_tokens))
        figures: dict[str, Any] = {"split": split, "lines": len(dialogues), "tokens": int(count)}
        figures |= {"truncated": int(is_cut_N.sum()), "nll": nll / count, "perplexity": perplexity(nll / count)}
        answerable = (dialogue for dialogue in dialogues if any(turn.is_trained_answer for turn in dialogue.turns))
        shown = list(islice(answerable, self.answered))
        answers = self.answer(trained, [dialogue.prompt for dialogue in shown])
        if progress:
            progress(len(dialogues))
        if not answers:
            return figures
        texts = [text.strip() for text, _ in answers]
        references = [dialogue.answer.strip() for dialogue in shown]
        matches = {"ended": [reason == FINISH_REASONS[FINISH_STOP] for _, reason in answers]}
        matches["exact_match"] = [text == reference for text, reference in zip(texts, references, strict=True)]
        if self.answer_pattern:
            matches["pattern_match"] = [bool(re.fullmatch(self.answer_pattern, text, re.DOTALL)) for text in texts]
        percent = {name: 100.0 * float(np.mean(values)) for name, values in matches.items()}
        return figures | {"answers": len(answers)} | percent
