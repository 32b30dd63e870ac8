"""A search over a queue gives each row the same hypotheses as a search of one batch, and compiles nothing twice."""

import jax
import numpy as np
import pytest
from fixtures.zoo import ZOO, batch_of, examples, params_of, sharpened

from jaxlm.data.batching.eval_batches import queue_shapes
from jaxlm.data.ragged import Ragged
from jaxlm.decode import continuous_batching
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.continuous_batching import beam_search_queue
from jaxlm.decode.request import DecodeRequest
from jaxlm.distributed.sharding import make_mesh, train_state_shardings
from jaxlm.types import Batch

ROWS = examples(23, low=1, high=6)
LIMIT_B = np.random.default_rng(0).integers(1, 10, len(ROWS)).astype(np.int32)
BEAM = Beam(3, 2, length_penalty=0.6)
BOS, LENGTH = 2, 9


def request_of(rows):
    """The sources of some rows; a row of number -1 is empty."""
    kept = [row for row in rows if row >= 0]
    batch = batch_of([ROWS[row] for row in kept], 6, 6)
    empty = len(rows) - len(kept)
    pad = np.zeros((empty, 6), np.int32)
    valid = np.concatenate([batch.source_valid_BS, pad > 0])
    limit = np.concatenate([LIMIT_B[kept], np.zeros(empty, np.int32)])
    sources = Batch(source_BS=np.concatenate([batch.source_BS, pad]), source_valid_BS=valid)
    bos_B1 = np.full((len(rows), 1), BOS)
    return DecodeRequest(sources, bos_B1, bos_B1 > 0, limit)


def queue_of(rows):
    """Requests of two rows; the last one of an odd number has a filler."""
    for row_G in np.pad(rows, (0, len(rows) % 2), constant_values=-1).reshape(-1, 2):
        yield row_G, request_of(row_G)


@pytest.mark.parametrize(
    "name, places, mesh",
    [
        ("pre", 5, None),
        pytest.param("seq2seq_additive_feeding", 5, None, marks=pytest.mark.slow),
        pytest.param("pre", 8, {"data": 4, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param("seq2seq_dot", 8, {"fsdp": 8}, marks=pytest.mark.slow),
    ],
)
def test_a_queue_equals_a_batch(name, places, mesh):
    """23 rows of different limits through a few places, admitted two at a time, against one batch; also on a mesh."""
    model = ZOO[name].model
    params = sharpened(params_of(model), 3)
    config = BeamSearchConfig(LENGTH, (3,), BEAM)
    expected = jax.device_get(beam_search(model, params, request_of(range(len(ROWS))), config))
    if mesh:
        params = jax.device_put(params, train_state_shardings(params, make_mesh(mesh)))
    order = np.random.default_rng(1).permutation(len(ROWS))
    before = None
    for count in (len(ROWS), 4):  # the second time nothing is compiled, for any queue
        seen = []
        for rows, hypotheses in beam_search_queue(model, params, queue_of(order[:count]), places, config):
            seen += rows.tolist()
            np.testing.assert_array_equal(hypotheses["tokens_BNT"], expected.tokens_BNT[rows])
            np.testing.assert_allclose(hypotheses["score_BN"], expected.score_BN[rows], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(hypotheses["reason_BN"], expected.reason_BN[rows])
        assert sorted(seen) == sorted(order[:count])
        sizes = continuous_batching._run_steps._cache_size(), continuous_batching._admit_rows._cache_size()
        assert before in (None, sizes)
        before = sizes


def test_shapes_of_a_queue():
    """Every row once, the longest first, within the budget, in few shapes."""
    lengths = np.random.default_rng(2).integers(1, 60, 500)
    column = Ragged.from_rows([np.zeros(size, np.int32) for size in lengths])
    shapes = list(queue_shapes(column, 1024, 48))
    assert sorted(np.concatenate([rows for rows, *_ in shapes])) == list(range(500))
    assert len(shapes) <= 6
    for rows, length, places, group in shapes:
        assert (np.minimum(lengths[rows] + 1, 48) <= length).all()
        assert places * length <= 1024 and 1 <= group <= places
    assert list(queue_shapes(Ragged.from_rows([]), 1024, 48)) == []
    few = list(queue_shapes(Ragged.from_rows([[0] * size for size in range(1, 60)]), 1024, 64))
    assert len(few) == 1 < len(shapes)
