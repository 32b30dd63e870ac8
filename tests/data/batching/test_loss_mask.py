"""The column "loss_mask": where it lies in a batch, packed or not, and what a cut leaves of it."""

import numpy as np
import pytest

from jaxlm.data.batching.bucketing import Buckets, Packing
from jaxlm.data.ragged import Ragged, first_nonzero
from jaxlm.errors import UserError

EOS = 3


def _columns(*rows: tuple[int, int]) -> dict[str, Ragged]:
    """(prompt ids, answer ids) of each row: the answer and its EOS are trained; answers are ids from 100 on."""
    target = [[*range(10, 10 + prompt), *range(100, 100 + answer)] for prompt, answer in rows]
    mask = [[0] * prompt + [1] * (answer + 1) for prompt, answer in rows]
    return {"target": Ragged.from_rows(target), "loss_mask": Ragged.from_rows(mask, np.uint8)}


@pytest.mark.parametrize("batching", [Buckets(64, 2, max_length=16), Packing(16, tokens=64, row_multiple=2)], ids=str)
def test_the_mask_covers_the_labels_of_the_answers(batching):
    columns = _columns((3, 2), (1, 4), (5, 5), (2, 1))
    batches = batching.batches(columns)
    seen = 0
    for k in range(2 * int(np.ceil(batches.epoch_order.batches_per_epoch))):
        batch = batches[k]
        mask_BT, valid_BT = batch.loss_mask_BT, batch.target_valid_BT
        assert mask_BT.dtype == bool and not (mask_BT & ~valid_BT).any()
        is_answer_BT = valid_BT & ((batch.label_BT >= 100) | (batch.label_BT == EOS))
        assert (batch.label_valid_BT == is_answer_BT).all()
        seen += int(mask_BT.sum())
    assert seen


def test_a_cut_answer_has_no_end_to_learn():
    columns = _columns((2, 8), (2, 3), (7, 2), (6, 1))
    batches = Buckets(64, 1, max_length=6, too_long="truncate", lengths=(6,)).batches(columns)
    statistics = batches.statistics()
    assert (statistics["examples"], statistics["dropped"], statistics["truncated"]) == (2, 2, 1)
    both = [batches[k] for k in range(2)]
    rows = [row for batch in both for row in zip(batch.label_BT, batch.loss_mask_BT, strict=True)]
    labels = {tuple(label_T[mask_T].tolist()) for label_T, mask_T in rows}
    assert labels == {(100, 101, 102), (100, 101, 102, EOS)}
    with pytest.raises(UserError, match="none of the 1 examples is within"):
        Buckets(64, 1, max_length=6, too_long="truncate").batches(_columns((7, 2)))


def test_the_first_place_that_is_not_zero():
    column = Ragged.from_rows([[0, 0, 1], [0, 0], [1], [], [0, 1, 1]], np.uint8)
    assert first_nonzero(column).tolist() == [2, 2, 0, 0, 1]
    assert first_nonzero(Ragged.from_rows([[0, 0], []], np.uint8)).tolist() == [2, 0]
