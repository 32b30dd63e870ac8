"""Windows of one stream: every token is a label once an epoch, after the token before it."""

import numpy as np
import pytest

from jaxlm.data.batching.lm_windows import TokenStream, Windows
from jaxlm.data.ragged import ConcatArray, Ragged
from jaxlm.data.tokenizers.base import BOS, EOS
from jaxlm.errors import UserError

TEXTS = [[5, 6, 7], [], [8], list(range(10, 40)), [9, 9]]
COLUMNS = {"target": Ragged.from_rows(TEXTS)}
STREAM = [5, 6, 7, EOS, EOS, 8, EOS, *range(10, 40), EOS, 9, 9, EOS]


def test_a_stream_is_all_texts_with_their_ends():
    for end, expected in ((True, STREAM), (False, [i for text in TEXTS for i in text])):
        stream = TokenStream(COLUMNS["target"], end)
        np.testing.assert_array_equal(stream[np.arange(len(stream))], expected)


def test_several_files_are_one_array():
    parts = ConcatArray([np.arange(3), np.arange(0), np.arange(10, 15), np.arange(20, 21)])
    whole = np.asarray(parts)
    rng = np.random.default_rng(0)
    for at in (slice(1, 7), slice(None), slice(4, 4), rng.integers(0, 9, (4, 5)), np.zeros(0, int)):
        np.testing.assert_array_equal(parts[at], whole[at])
    rows, ids = [0, 2, 2, 6, 9], np.arange(9)
    one, several = (TokenStream(Ragged(flat, np.array(rows))) for flat in (whole, parts))
    np.testing.assert_array_equal(one[np.arange(13)], several[np.arange(13)])
    assert len(parts) == len(ids) and len(one) == 13


def test_documents_kept_apart():
    """Every document begins after BOS and has a segment of its own; the labels are the same."""
    plain, apart = (Windows(8, 3, isolate_documents=flag).batches(COLUMNS) for flag in (False, True))
    assert plain.config.carry_rows == 3 and apart.config.carry_rows == 0
    for k in range(plain.batches_per_epoch):
        one, other = plain[k], apart[k]
        valid = one.target_valid_BT
        np.testing.assert_array_equal(one.label_BT, other.label_BT)
        np.testing.assert_array_equal(np.where(one.target_BT == EOS, BOS, one.target_BT)[valid], other.target_BT[valid])
        assert other.reset_B is None and EOS not in other.target_BT[valid]
        for read, segment, real in zip(other.target_BT, other.target_segment_BT, valid, strict=True):
            begins = np.flatnonzero(read[real] == BOS)
            assert (np.flatnonzero(np.diff(segment[real])) + 1).tolist() == begins[begins > 0].tolist()
            assert (segment > 0).tolist() == real.tolist()
    with pytest.raises(UserError, match="set append_eos=True"):
        Windows(8, 3, append_eos=False, isolate_documents=True)


@pytest.mark.parametrize("rows, length", [(1, 7), (3, 4), (4, 5), (5, 8), (2, 21)])
def test_every_token_is_a_label_once_an_epoch_after_the_one_before(rows, length):
    """Row r of the batches of an epoch is one piece of the stream, and the pieces follow each other."""
    batches = Windows(length, rows, reset_prob=0.0).batches(COLUMNS)
    epoch = [batches[k] for k in range(batches.batches_per_epoch)]
    valid_BT = np.concatenate([batch.target_valid_BT for batch in epoch], 1)
    labels = np.concatenate([batch.label_BT for batch in epoch], 1)[valid_BT]
    read = np.concatenate([batch.target_BT for batch in epoch], 1)[valid_BT]
    np.testing.assert_array_equal(labels, STREAM)
    np.testing.assert_array_equal(read, [BOS, *STREAM[:-1]])
    assert [bool(batch.reset_B.all()) for batch in epoch] == [True] + [False] * (len(epoch) - 1)
    assert all(batch.target_BT.shape == (rows, length) and batch.target_BT.dtype == np.int32 for batch in epoch)


def test_epochs_repeat_and_batches_do_not_depend_on_the_object():
    batches = Windows(4, 3).batches(COLUMNS)
    again = Windows(4, 3).batches(COLUMNS)
    for k in (0, 2, 5):
        np.testing.assert_array_equal(batches[k].label_BT, again[k + batches.batches_per_epoch].label_BT)


def test_rows_are_reset_at_random():
    """Resets have the given rate; all parts of a batch agree, another seed has other rows, the text is unchanged."""
    plain = Windows(4, 10).batches(COLUMNS)
    batches, other = (Windows(4, 10, reset_prob=0.3).batches(COLUMNS, seed) for seed in (0, 1))
    reset_KB = np.stack([batches[k].reset_B for k in range(200)])
    first = np.arange(200) % batches.batches_per_epoch == 0
    assert reset_KB[first].all() and 0.25 < reset_KB[~first].mean() < 0.35
    assert (reset_KB != np.stack([other[k].reset_B for k in range(200)])).any()
    np.testing.assert_array_equal(batches[3].label_BT, plain[3].label_BT)
    for part in range(2):
        np.testing.assert_array_equal(batches.host_part(3, part, 2).reset_B, reset_KB[3, 5 * part : 5 * part + 5])
    with pytest.raises(UserError, match="reset_prob = 1.5: expected a probability"):
        Windows(reset_prob=1.5)


@pytest.mark.parametrize("rows, length", [(3, 4), (5, 8), (1, 41)])
def test_drawn_windows_hold_every_token_once_in_an_order_of_their_own(rows, length):
    """Rows past the end of an epoch's windows repeat its first ones: every token is a label at least once."""
    batches = Windows(length, rows, carry_state=False).batches(COLUMNS, seed=3)
    orders = []
    for epoch in range(2):
        seen = np.zeros(len(STREAM), int)
        for k in range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch):
            batch = batches[k]
            assert batch.reset_B is None
            for read, label, valid in zip(batch.target_BT, batch.label_BT, batch.target_valid_BT, strict=True):
                labels, before = label[valid], read[valid]
                starts = [at for at in range(len(STREAM)) if STREAM[at : at + len(labels)] == labels.tolist()]
                assert starts
                start = next(s for s in starts if before[0] == (STREAM[s - 1] if s else BOS)) if len(labels) else 0
                seen[start : start + len(labels)] += 1
        assert (seen >= 1).all() and seen.sum() <= len(STREAM) + rows * length
        orders.append(
            [batches[epoch * batches.batches_per_epoch + k].label_BT.tolist() for k in range(batches.batches_per_epoch)]
        )
    assert orders[0] != orders[1]


def test_a_text_shorter_than_a_batch_is_an_error():
    with pytest.raises(UserError, match="41 tokens, a batch 8 rows of 64.*lower"):
        Windows(64, 8).batches(COLUMNS)


def test_statistics():
    batches = Windows(4, 3).batches(COLUMNS)
    figures = batches.statistics()
    assert batches.row_multiple == 3 and figures["batches_per_epoch"] == 4 and figures["shapes"] == 1
    assert figures["padding_target"] == pytest.approx(1 - 41 / 48) and figures["tokens"] == pytest.approx(41 / 4)
