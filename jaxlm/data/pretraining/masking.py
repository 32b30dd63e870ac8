"""Hidden tokens to be guessed (Devlin et al. 2019, section 3.1): which, and what stands in their place."""

from dataclasses import dataclass

import numpy as np

from jaxlm.data.pretraining.token_types import IS_TEXT, STARTS_WORD
from jaxlm.errors import UserError


@dataclass(frozen=True)
class Masking:
    """`rate` of the text tokens of a row are to be guessed: round(rate x tokens), and one at least.

    Of these, `masked` are replaced by the mask, `swapped` by any token of text, and the rest stay what they are.
    whole_words: a word is hidden with all of its pieces or not at all; their number is then `rate` at most, as long as
      that is a word.
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
        if (
            min(self.mask_replace_prob, self.random_replace_prob) < 0.0
            or self.mask_replace_prob + self.random_replace_prob > 1.0
        ):
            raise UserError(
                f"mask_replace_prob = {self.mask_replace_prob} and random_replace_prob = "
                f"{self.random_replace_prob}: expected shares, together 1 at most"
            )

    def mask_tokens(
        self, ids_BS: np.ndarray, valid_BS: np.ndarray, flags_V: np.ndarray, mask_id: int, draw_3BS: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The row with its gaps, and `token_label_BS`: the token that stood there, -1 where nothing is asked.

        Only valid ids that are text (`jaxlm.data.pretraining.token_types`) are masked. `draw_3BS` are random numbers in
        [0, 1).
        """
        flags_BS = np.where(valid_BS, flags_V[ids_BS], 0)
        text_BS = flags_BS & IS_TEXT > 0
        chosen_BS = self._select_tokens(text_BS, flags_BS & STARTS_WORD > 0, draw_3BS[0])
        choice_M = np.flatnonzero(flags_V & IS_TEXT)
        swapped_BS = choice_M[(draw_3BS[2] * len(choice_M)).astype(np.int64)]
        fate_BS = draw_3BS[1]
        hidden_BS = np.where(
            fate_BS < self.mask_replace_prob,
            mask_id,
            np.where(fate_BS < self.mask_replace_prob + self.random_replace_prob, swapped_BS, ids_BS),
        )
        source_BS = np.where(chosen_BS, hidden_BS, ids_BS).astype(np.int32)
        return source_BS, np.where(chosen_BS, ids_BS, -1).astype(np.int32)

    def _select_tokens(self, text_BS: np.ndarray, starts_word_BS: np.ndarray, draw_BS: np.ndarray) -> np.ndarray:
        """Words in the order of their draws, as many as have room; a word is a token where words are not `whole`."""
        before_BS = np.pad(text_BS, ((0, 0), (1, 0)))[:, :-1]
        word_BS = np.cumsum(text_BS & (starts_word_BS | ~before_BS | (not self.whole_word_mask)), axis=1)
        key_BS = np.where(text_BS, np.take_along_axis(draw_BS, word_BS - 1, axis=1), np.inf)
        order_BS = np.argsort(key_BS, axis=1, kind="stable")
        sorted_BS = np.take_along_axis(key_BS, order_BS, axis=1)
        place_S = np.arange(text_BS.shape[1])
        last_BS = np.pad(sorted_BS[:, 1:] != sorted_BS[:, :-1], ((0, 0), (0, 1)), constant_values=True)  # of its word
        first_BS = np.pad(last_BS, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
        end_BS = np.minimum.accumulate(np.where(last_BS, place_S, len(place_S))[:, ::-1], axis=1)[:, ::-1]
        start_BS = np.maximum.accumulate(np.where(first_BS, place_S, 0), axis=1)
        budget_B1 = np.maximum(np.round(self.mlm_probability * text_BS.sum(1, keepdims=True)), 1)
        chosen_BS = ((end_BS < budget_B1) | (start_BS == 0)) & np.isfinite(sorted_BS)
        found_BS = np.zeros_like(text_BS)
        np.put_along_axis(found_BS, order_BS, chosen_BS, axis=1)
        return found_BS
