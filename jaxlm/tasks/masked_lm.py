"""The task of masked language modelling: say the tokens that were hidden, and whether two spans belong together."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.data.files import ReadStats
from jaxlm.data.pretraining.masked_lm import MaskedLMRows
from jaxlm.data.pretraining.token_types import token_flag_columns
from jaxlm.data.ragged import Columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel
from jaxlm.inference.fill_mask import fill_masks, mask_positions
from jaxlm.inference.translate import to_single_line
from jaxlm.models.encoder import Encoder
from jaxlm.objectives.masked_lm import MaskedLM, features_and_nsp_logits
from jaxlm.tasks.base import TextTask
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class MaskedLanguageModeling(TextTask):
    """Texts with gaps. `predict` fills those that a line has.

    Attributes:
      rows: how a split is read and hidden when it is judged: always in the same way.
      mask: what stands for a gap, a symbol of the tokenizer; "" is its unknown id.
      quick: batches of the validation split that are judged during training; 0: all.
      tokens: positions of a batch of lines.
    """

    eval_batching: MaskedLMRows = MaskedLMRows()
    mask_token: str = "[MASK]"
    valid_batches: int = 0
    batch_tokens: int = 8192

    eval_only_fields: ClassVar[tuple[str, ...]] = (
        "test",
        "extra_tests",
        "eval_batching",
        "valid_batches",
        "batch_tokens",
    )
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "accuracy", "next_sentence")

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError for a model that cannot do what is judged."""
        if not isinstance(model, Encoder) or not model.mlm_head:
            raise UserError(f"{type(model).__name__} does not fill gaps: the task needs an Encoder with head = True")
        if self.eval_batching.next_sentence and (not model.nsp_head or model.num_token_types < 2):
            raise UserError(
                f"the rows are pairs of spans, and the model has nsp_head = {model.nsp_head} and num_token_types "
                f"= {model.num_token_types}: "
                "set --model.nsp-head --model.num-token-types 2, or --task.eval-batching.no-next-sentence "
                "--batching.no-next-sentence"
            )

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        """Columns "target", "piece" and "symbol"."""
        target = self.train.encode(tokenizer, read_stats, folder)
        return token_flag_columns(tokenizer, [self.mask_token]) | {"target": target}

    def validate(
        self,
        trained: TrainedModel,
        objective: Any,
        batch_tokens: int,
        progress: ProgressCallback = None,
    ) -> dict[str, float]:
        """What is minimised, negative log-likelihood and accuracy (%) of a hidden token, accuracy of the pairs (%)."""
        figures = self._compute_metrics(trained, objective, "valid", self.valid_batches)
        return {f"valid/{name}": figures[name] for name in self.metric_names if name in figures}

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """The same of a whole split; `lines` are rows, `tokens` those that were hidden."""
        figures = self._compute_metrics(trained, MaskedLM(), split, 0)
        if progress:
            progress(self.count(split))
        perplexity = math.exp(min(figures["nll"], 700.0))
        return {"split": split} | figures | {"perplexity": perplexity}

    def _compute_metrics(self, trained: TrainedModel, objective: Any, split: str, max_batches: int) -> dict[str, Any]:
        columns = token_flag_columns(trained.tokenizer, [self.mask_token])
        columns |= {"target": self.split(split).encode(trained.tokenizer)}
        batches, sums = self.eval_batching.batches(columns, special=trained.tokenizer.special), np.zeros(6)
        count = min(batches.batches_per_epoch, max_batches or batches.batches_per_epoch)
        judge = _jitted_eval(trained.model, objective)
        for batch in map(batches.__getitem__, range(count)):
            sums += np.asarray(judge(trained.params, batch, mask_positions(batch.token_label_BS >= 0)), np.float64)
        total, nll, tokens, right, pairs, right_pairs = sums.tolist()
        figures = {"lines": count * self.eval_batching.rows, "tokens": int(tokens), "loss": total / max(tokens, 1.0)}
        figures |= {"nll": nll / max(tokens, 1.0), "accuracy": 100.0 * right / max(tokens, 1.0)}
        return figures | ({"next_sentence": 100.0 * right_pairs / pairs} if pairs else {})

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """The beginnings of a few test texts with a word left out, what was put there, and the word."""
        for text in islice((text for text in self.test if len(text.split()) > 4), count if self.mask_token else 0):
            words = to_single_line(text).split()[:16]
            place = len(words) // 2
            gapped = " ".join([*words[:place], self.mask_token, *words[place + 1 :]])
            filled = self.predict(trained, [gapped])[0]
            yield f"{gapped} -> {filled.json['masks'][0][0]['text']} (right: {words[place]})"

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """Each line with its gaps filled by the likeliest token of each, and the likeliest ones with probabilities."""
        return fill_masks(trained, self.mask_token, lines, self.batch_tokens, progress)


@lru_cache(maxsize=8)
def _jitted_eval(model: Any, objective: Any) -> Any:
    """(parameters, batch, places) -> loss, nll, hidden tokens, those guessed right, pairs, those told right."""

    def judge(params: Params, batch: Batch, at_M: Array) -> tuple[Any, ...]:
        loss = objective(model, params, batch, None)
        features_BSD, logits_BC = model.apply(
            {"params": params}, batch, method=features_and_nsp_logits
        )  # computed once: XLA sees it
        flat = features_BSD.reshape(-1, features_BSD.shape[-1])[at_M]
        said_M = model.apply({"params": params}, flat, method="readout").argmax(-1)
        right = ((said_M == batch.token_label_BS.reshape(-1)[at_M]) & (at_M < batch.token_label_BS.size)).sum()
        if logits_BC is None:
            return loss.total, loss.nll, loss.count, right, 0, 0
        return loss.total, loss.nll, loss.count, right, len(logits_BC), (logits_BC.argmax(-1) == batch.class_B).sum()

    return jax.jit(judge)
