"""The task of masked language modeling: predict masked tokens, and whether one span follows another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm import runtime
from jaxlm.data.files import ReadStats
from jaxlm.data.pretraining.masked_lm import MaskedLMRows
from jaxlm.data.pretraining.token_types import token_flag_columns
from jaxlm.data.ragged import Columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel, to_single_line
from jaxlm.inference.fill_mask import fill_masks, mask_positions
from jaxlm.metrics.text import perplexity
from jaxlm.models.encoder import Encoder
from jaxlm.objectives.masked_lm import MaskedLM, features_and_nsp_logits
from jaxlm.tasks.base import EVAL_SPLITS, CorruptedTextTask
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class MaskedLanguageModeling(CorruptedTextTask):
    """Texts with masked tokens. `predict` fills the masks of a line.

    Attributes:
      eval_batching: how a split is read and masked in evaluation, always in the same way.
      mask_token: the mask, a symbol of the tokenizer; "" is its unknown id.
      batch_tokens: positions per batch of lines.
    """

    eval_batching: MaskedLMRows = MaskedLMRows()
    mask_token: str = "[MASK]"
    valid_batches: int = 0
    batch_tokens: int = 8192

    eval_only_fields: ClassVar[tuple[str, ...]] = (*EVAL_SPLITS, "eval_batching", "valid_batches", "batch_tokens")
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "accuracy", "next_sentence")
    eval_objective: ClassVar[Any] = MaskedLM()

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError for a model without the heads that are evaluated."""
        if not isinstance(model, Encoder) or not model.mlm_head:
            raise UserError(f"{type(model).__name__} cannot fill masks: the task needs an Encoder with mlm_head = True")
        if self.eval_batching.next_sentence and (not model.nsp_head or model.num_token_types < 2):
            raise UserError(
                f"the rows are pairs of spans, and the model has nsp_head = {model.nsp_head} and num_token_types "
                f"= {model.num_token_types}: set --model.nsp-head --model.num-token-types 2, or "
                "--task.eval-batching.no-next-sentence --batching.no-next-sentence"
            )

    def _encode_split(
        self, split: str, tokenizer: Tokenizer, read_stats: ReadStats | None = None, folder: Path | None = None
    ) -> Columns:
        target = self.split(split).encode(tokenizer, read_stats, folder)
        return token_flag_columns(tokenizer, [self.mask_token]) | {"target": target}

    def _metrics(self, trained: TrainedModel, objective: Any, split: str, max_batches: int | None) -> dict[str, Any]:
        evaluate, sums, num_batches = _jitted_eval(trained.model, objective), np.zeros(6), 0
        for batch in self._eval_batches(trained, split, max_batches):
            runtime.between_batches()
            position_M = mask_positions(batch.token_label_BS >= 0)
            sums += np.asarray(evaluate(trained.params, batch, position_M), np.float64)
            num_batches += 1
        total, nll, tokens, correct, pairs, correct_pairs = sums.tolist()
        count = max(tokens, 1.0)
        figures: dict[str, Any] = {"lines": num_batches * self.eval_batching.rows, "tokens": int(tokens)}
        figures |= {"loss": total / count, "nll": nll / count, "accuracy": 100.0 * correct / count}
        if pairs:
            figures["next_sentence"] = 100.0 * correct_pairs / pairs
        return figures | {"perplexity": perplexity(nll / count)}

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """The beginnings of a few test texts with a masked word, the predicted token, and the word."""
        for text in islice((text for text in self.test if len(text.split()) > 4), count if self.mask_token else 0):
            words = to_single_line(text).split()[:16]
            place = len(words) // 2
            masked = " ".join([*words[:place], self.mask_token, *words[place + 1 :]])
            (answer,) = self.predict(trained, [masked])
            yield f"{masked} -> {answer.json['masks'][0][0]['text']} (right: {words[place]})"

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """Each line with its masks filled by the most probable tokens, and the best candidates for each mask."""
        return fill_masks(trained, self.mask_token, lines, self.batch_tokens, progress)


@lru_cache(maxsize=8)
def _jitted_eval(model: Any, objective: Any) -> Any:
    """(parameters, batch, positions) -> loss, nll, masked tokens, correct ones, pairs, correct pairs: all sums."""

    def evaluate(params: Params, batch: Batch, position_M: Array) -> tuple[Any, ...]:
        loss = objective(model, params, batch, None)
        # The objective computes the same features: XLA merges the two computations.
        features_BSD, logits_BC = model.apply({"params": params}, batch, method=features_and_nsp_logits)
        features_MD = features_BSD.reshape(-1, features_BSD.shape[-1])[position_M]
        best_M = model.apply({"params": params}, features_MD, method="readout").argmax(-1)
        label_M, is_real_M = batch.token_label_BS.reshape(-1)[position_M], position_M < batch.token_label_BS.size
        correct = ((best_M == label_M) & is_real_M).sum()
        if logits_BC is None:
            return loss.total, loss.nll, loss.count, correct, 0, 0
        correct_pairs = (logits_BC.argmax(-1) == batch.class_B).sum()
        return loss.total, loss.nll, loss.count, correct, len(logits_BC), correct_pairs

    return jax.jit(evaluate)
