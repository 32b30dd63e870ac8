"""Masking for masked language modeling (Devlin et al. 2019, section 3.1)."""

from dataclasses import dataclass

import numpy as np

from jaxlm.data.pretraining.token_types import IS_TEXT, STARTS_WORD
from jaxlm.errors import UserError


@dataclass(frozen=True)
class Masking:
    """The tokens to predict, and their replacements.

    Attributes:
      mlm_probability: fraction of the text tokens of a row to predict; their number is rounded, and at least one.
      mask_replace_prob, random_replace_prob: fractions of the tokens to predict that the mask replaces, and that a
        random text token replaces; the others stay.
      whole_word_mask: a word is masked with all of its tokens or not at all. The number of masked tokens is then
        bounded by the fraction, except that one word is always masked.
    """

    mlm_probability: float = 0.15
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    whole_word_mask: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.mlm_probability < 1.0:
            raise UserError(
                f"mlm_probability = {self.mlm_probability}: expected a share of the tokens, more than 0 and less than 1"
            )
        shares = self.mask_replace_prob, self.random_replace_prob
        if min(shares) < 0.0 or sum(shares) > 1.0:
            raise UserError(
                f"mask_replace_prob = {shares[0]} and random_replace_prob = {shares[1]}: expected shares, together 1 "
                "at most"
            )

    def mask_tokens(
        self, ids_BS: np.ndarray, valid_BS: np.ndarray, flags_V: np.ndarray, mask_id: int, draw_3BS: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The masked row and `token_label_BS`: the original token where it is to be predicted, else -1.

        Only valid ids with the flag IS_TEXT (`jaxlm.data.pretraining.token_types`) are masked. `draw_3BS` are random
        numbers in [0, 1): for the choice of tokens, the kind of replacement and the random token.
        """
        flags_BS = np.where(valid_BS, flags_V[ids_BS], 0)
        text_BS = flags_BS & IS_TEXT > 0
        masked_BS = self._select_tokens(text_BS, flags_BS & STARTS_WORD > 0, draw_3BS[0])
        text_ids_M = np.flatnonzero(flags_V & IS_TEXT)
        random_BS = text_ids_M[(draw_3BS[2] * len(text_ids_M)).astype(np.int64)]
        is_random_BS = draw_3BS[1] < self.mask_replace_prob + self.random_replace_prob
        replaced_BS = np.where(is_random_BS, random_BS, ids_BS)
        replaced_BS = np.where(draw_3BS[1] < self.mask_replace_prob, mask_id, replaced_BS)
        source_BS = np.where(masked_BS, replaced_BS, ids_BS).astype(np.int32)
        return source_BS, np.where(masked_BS, ids_BS, -1).astype(np.int32)

    def _select_tokens(self, text_BS: np.ndarray, starts_word_BS: np.ndarray, draw_BS: np.ndarray) -> np.ndarray:
        """True for the tokens of words in random order, as many as fit; without `whole_word_mask` a word is a token."""
        after_text_BS = np.pad(text_BS, ((0, 0), (1, 0)))[:, :-1]
        # The number of each token's word, from 1. All tokens of a word get one key; what is not text sorts to the end.
        word_BS = np.cumsum(text_BS & (starts_word_BS | ~after_text_BS | (not self.whole_word_mask)), axis=1)
        key_BS = np.where(text_BS, np.take_along_axis(draw_BS, word_BS - 1, axis=1), np.inf)
        order_BS = np.argsort(key_BS, axis=1, kind="stable")
        sorted_BS = np.take_along_axis(key_BS, order_BS, axis=1)
        place_S = np.arange(text_BS.shape[1])
        # In sorted order the tokens of a word are neighbors: first_BS and last_BS mark its ends, start_BS and end_BS
        # are their places for every token.
        last_BS = np.pad(sorted_BS[:, 1:] != sorted_BS[:, :-1], ((0, 0), (0, 1)), constant_values=True)
        first_BS = np.pad(last_BS, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
        end_BS = np.minimum.accumulate(np.where(last_BS, place_S, len(place_S))[:, ::-1], axis=1)[:, ::-1]
        start_BS = np.maximum.accumulate(np.where(first_BS, place_S, 0), axis=1)
        budget_B1 = np.maximum(np.round(self.mlm_probability * text_BS.sum(1, keepdims=True)), 1)
        # Words that end within the budget, and always the first one.
        chosen_BS = ((end_BS < budget_B1) | (start_BS == 0)) & np.isfinite(sorted_BS)
        masked_BS = np.zeros_like(text_BS)
        np.put_along_axis(masked_BS, order_BS, chosen_BS, axis=1)
        return masked_BS
