"""Meshes: how they are asked for, what lies where, and that training on them is training on one device."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.mesh_steps import FAMILIES, MESHES, OPTIMIZER, alone, difference, subject, trained
from fixtures.tiny_run import EXPERIMENT
from jax.sharding import PartitionSpec

from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.distributed.mesh_axes import parse_mesh_axes, resolve_mesh_shape
from jaxlm.distributed.placement import put_batch
from jaxlm.distributed.sharding import (
    arrange_devices,
    constrain,
    make_mesh,
    partition_spec,
    train_state_shardings,
    unsharded_params,
    with_shardings,
)
from jaxlm.errors import UserError
from jaxlm.models.decoder import Decoder
from jaxlm.objectives.next_token import NextToken
from jaxlm.perf.collectives import bytes_by_kind, find_collectives
from jaxlm.pytree import named_leaves
from jaxlm.training.run_options import RunOptions
from jaxlm.training.setup import setup_training
from jaxlm.training.state import TrainState
from jaxlm.training.step import StepConfig, make_train_step
from jaxlm.workdir import Workdir

TOLERANCE = 1e-5
ROUGH = 0.02
"""Of products in bfloat16, whose sums round where devices add up."""


def test_axes_are_asked_for_in_any_order():
    assert parse_mesh_axes("fsdp=4, data=2") == {"fsdp": 4, "data": 2}
    for text, devices, sizes in (
        ("fsdp=4,data=2", 8, (2, 4, 1, 1)),
        ("tensor=2", 8, (4, 1, 1, 2)),
        ("fsdp=-1", 8, (1, 8, 1, 1)),
        ("data=-1,sequence=2", 8, (4, 1, 2, 1)),
        ("data=2", 8, (2, 1, 1, 1)),
    ):
        assert tuple(resolve_mesh_shape(parse_mesh_axes(text), devices).values()) == sizes, text


@pytest.mark.parametrize(
    "text, message",
    [
        ("rows=2", "found 'rows=2', expected AXIS=SIZE with an axis of data, fsdp, sequence, tensor"),
        ("data", "found 'data', expected"),
        ("data=2,data=4", "data is there twice"),
        ("data=0", "size '0' of data"),
        ("data=two", "size 'two' of data"),
        ("data=-1,fsdp=-1", "only one axis"),
        ("data=4,tensor=4", "asks for 16 devices, and there are 8: make the product 8 or less"),
        ("tensor=3", "asks for 3 devices, and there are 8: make the product 8 or a divisor of it"),
    ],
)
def test_an_impossible_mesh_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        resolve_mesh_shape(parse_mesh_axes(text), 8)


@dataclass(frozen=True)
class Chip:
    """What is known of a device of several slices."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_only_rows_go_from_slice_to_slice():
    chips = [Chip(number, number // 4) for number in (5, 0, 3, 6, 1, 4, 7, 2)]
    for shape in ((4, 1, 1, 2), (2, 1, 2, 2), (1, 4, 1, 2)):
        grid = arrange_devices(
            chips, resolve_mesh_shape(dict(zip(("data", "fsdp", "sequence", "tensor"), shape, strict=True)), 8)
        )
        assert grid.shape == shape and {chip.id for chip in grid.flat} == set(range(8))
        by_row = grid.reshape(shape[0] * shape[1], -1)
        assert all(len({chip.slice_index for chip in row}) == 1 for row in by_row)
    with pytest.raises(UserError, match="2 slices, and the mesh has data=1, fsdp=1"):
        arrange_devices(chips, resolve_mesh_shape({"data": 1, "tensor": 8}, 8))


def test_what_does_not_divide_is_left_whole():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert partition_spec(("vocab", "embed"), (24, 6), mesh) == PartitionSpec(("tensor",), ("fsdp",))
    assert partition_spec(("vocab", "embed"), (23, 6), mesh) == PartitionSpec(None, ("fsdp",))
    assert partition_spec(("batch", None), (6, 6), mesh) == PartitionSpec(("data",))  # by two, not by four
    lines = unsharded_params({"embedding": jnp.ones((23, 6)), "output": jnp.ones((24, 5))}, mesh)
    assert lines == ["embedding (23 by tensor=2)", "output (5 by fsdp=2)"]


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.ones((4, 6))
    assert constrain(x, "batch", "embed") is x
    assert "sharding_constraint" not in str(jax.make_jaxpr(lambda x: constrain(x, "batch", "embed"))(x))


def bytes_of(tree) -> int:
    """On the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def check_mesh(name, mesh):
    state, totals, step = trained(name, MESHES[mesh])
    assert difference((state, totals), alone(name)) < (ROUGH if name == "bfloat16" else TOLERANCE)
    assert step._cache_size() == 1  # what a step gives back lies where the next one takes it
    places = train_state_shardings(state, jax.tree.leaves(state.params)[0].sharding.mesh)
    for (path, leaf), place in zip(named_leaves(state).items(), jax.tree.leaves(places), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim), path


FAST = {("llama", "data, fsdp, tensor"), ("lstm_lm", "fsdp")}
GRID = [(name, mesh) for name in FAMILIES for mesh in MESHES]


@pytest.mark.parametrize(
    "name, mesh", [pytest.param(*one, marks=() if one in FAST else pytest.mark.slow) for one in GRID]
)
def test_a_mesh_trains_as_one_device_does(name, mesh):
    check_mesh(name, mesh)


def test_parameters_and_moments_are_shared_out():
    """fsdp: both by eight; split moments: the moments alone, over data; the steps are the same."""
    whole = alone("lstm_lm")
    apart = trained("lstm_lm", MESHES["fsdp"])[0]
    assert bytes_of(apart.params) < bytes_of(whole[0].params) / 4
    assert bytes_of(apart.opt_state) < bytes_of(whole[0].opt_state) / 4
    state, totals, step = trained("lstm_lm", MESHES["data"], True)
    assert bytes_of(state.params) == bytes_of(whole[0].params)
    assert bytes_of(state.opt_state) < bytes_of(whole[0].opt_state) / 4
    assert difference((state, totals), whole) < TOLERANCE and step._cache_size() == 1


def test_a_checkpoint_fits_every_mesh(tmp_path):
    """Written from one mesh, read onto two others and onto one device, bit for bit."""
    _, params, _ = subject("transformer")
    state = TrainState(jnp.int32(3), params, OPTIMIZER.build(1).init(params))
    abstract = jax.eval_shape(lambda: state)
    with Checkpoints(tmp_path) as checkpoints:
        mesh = make_mesh(MESHES["fsdp"])
        checkpoints.save(3, jax.device_put(state, train_state_shardings(state, mesh)), {})
    for asked in ({"data": 1}, MESHES["data"], MESHES["data, fsdp, tensor"]):
        places = train_state_shardings(abstract, make_mesh(asked))
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            found, _, _ = checkpoints.restore(with_shardings(abstract, places))
        jax.tree.map(np.testing.assert_array_equal, found, state)
        assert jax.tree.map(lambda x: x.sharding, found) == places


DECODER = Decoder(96, 64, 4, 128, 2, max_length=32, scan=True, tie_embeddings=False)


def compiled_step(asked) -> list:
    """The collectives of a training step of the decoder: 16 rows of 32 positions."""
    mesh, optimizer = make_mesh(asked), OPTIMIZER.build(1)
    batch = subject("gpt2")[2][0].replace(source_BS=None, source_valid_BS=None)
    batch = put_batch(jax.tree.map(lambda x: np.tile(x, (1, 4)), batch), mesh)
    shapes = jax.eval_shape(DECODER.init, jax.random.key(0), batch)["params"]
    state = jax.eval_shape(lambda p: TrainState(jnp.int32(0), p, optimizer.init(p)), shapes)
    state = with_shardings(state, train_state_shardings(state, mesh))
    step = make_train_step(DECODER, NextToken(), optimizer, OPTIMIZER.schedule.build(1), StepConfig(mesh=mesh))
    return find_collectives(step.lower(state, batch).compile())


def gathered(found) -> set:
    """The shapes that are gathered, without axes of 1."""
    return {
        tuple(n for n in shape if n > 1) for one in found if one.kind == "all-gather" for shape in one.shapes
    }  # fmt: skip


@pytest.mark.parametrize(
    "mesh", ["data", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fsdp", "tensor", "sequence"))]
)
def test_only_what_the_table_says_is_gathered(mesh):
    """Nothing where rows or heads are split; the parameters of fsdp, each layer's in its turn; keys, values and masks
    where positions are. Gradients are added up once, not in every chunk of the loss or at every position."""
    found = compiled_step(MESHES[mesh])
    told = bytes_by_kind(found)
    assert set(told) <= {"all-reduce", "all-gather", "reduce-scatter"}
    shapes = jax.eval_shape(DECODER.init, jax.random.key(0), subject("gpt2")[2][0])["params"]
    weights = {leaf.shape[1:] if "layers" in path else leaf.shape for path, leaf in named_leaves(shapes).items()}
    allowed = {"fsdp": weights, "sequence": {(16, 32, 64), (16, 32, 4, 16), (16, 32)}}
    assert gathered(found) <= allowed.get(mesh, set())
    assert bool(gathered(found)) == (mesh in allowed)
    if mesh == "data":
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes)) * 4
        assert size <= told["all-reduce"]["bytes"] < 1.2 * size  # each gradient once


@pytest.mark.parametrize("rows, parts, cure", [(20, 1, r"\(--mesh data=4\)"), (24, 2, "data=4"), (8, 3, "24$")])
def test_rows_that_devices_cannot_share(rows, parts, cure, tmp_path):
    """The global batch is the experiment's: it does not change with the machine, so the machine has to fit it."""
    batching = replace(EXPERIMENT.batching, tokens=6 * rows, row_multiple=rows)
    with pytest.raises(UserError, match=f"multiples of {rows}, which {parts} .* on 8 devices.*{cure}"):
        setup_training(replace(EXPERIMENT, batching=batching, grad_accum=parts), Workdir(tmp_path), lambda text: None)


def test_what_is_computed_twice():
    """More products in the gradient the less is kept; the model's own word is kept where the machine has none."""
    batch = subject("gpt2")[2][0]
    params = jax.eval_shape(DECODER.init, jax.random.key(0), batch)["params"]

    def products(remat):
        model = RunOptions(remat=remat).with_remat(DECODER)
        loss = lambda params: NextToken()(model, params, batch, None).total  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")

    none, dots, full = (products(remat) for remat in ("none", "dots", "full"))
    assert products(None) == none < dots < full
    with pytest.raises(UserError, match="RecurrentLM has no stack"):
        RunOptions(remat="full").with_remat(FAMILIES["lstm_lm"])


def test_loops_and_pairs_are_counted_once_each():
    text = """
%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %ag = f32[32,8]{1,0} all-gather(%x), channel_id=3, dimensions={0}
}
%fused (p: f32[4]) -> f32[8] {
  ROOT %r = f32[8]{0} all-gather(%p), channel_id=5, dimensions={0}
}
ENTRY %main (a: f32[4]) -> f32[8] {
  %w = (s32[], f32[4,8]{1,0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %s = (bf16[4,4]{1,0}, bf16[16,4]{1,0}) all-gather-start(%b), channel_id=4
  %m = f32[8]{0} multiply(%a, %a)
  %d = bf16[16,4]{1,0} all-gather-done(%s)
  %r = (f32[8]{0}, f32[]) all-reduce(%g, %h), channel_id=7, to_apply=%add
  %f1 = f32[8]{0} fusion(%a), kind=kCustom, calls=%fused
  %f2 = f32[8]{0} fusion(%a), kind=kCustom, calls=%fused
}
"""
    assert bytes_by_kind(find_collectives(text)) == {
        "all-gather": {"count": 12 + 1 + 1, "bytes": 12 * 32 * 8 * 4 + 16 * 4 * 2 + 8 * 4, "overlapped": 1},
        "all-reduce": {"count": 1, "bytes": 8 * 4 + 4, "overlapped": 0},
    }


def test_a_pair_overlaps_if_something_is_computed_between():
    """In a scheduled program: asynchronous instructions of GPUs, and the fusions of TPUs with a collective in them."""
    text = """
%fused (p: f32[4]) -> f32[8] {
  ROOT %r = f32[8]{0} all-gather(%p), channel_id=5, dimensions={0}
}
ENTRY %main (a: f32[4]) -> f32[8] {
  %s1 = (f32[8]{0}, f32[8]{0}) all-reduce-start(%a), channel_id=1
  %b = f32[8]{0} bitcast(%a)
  %d1 = f32[8]{0} all-reduce-done(%s1)
  %async-collective-start.2 = (f32[4]{0}, f32[8]{0}) fusion(%a), kind=kCustom, calls=%fused
  %g = f32[8]{0} get-tuple-element(%async-collective-start.2), index=1
  MIDDLE
  %async-collective-done.2 = f32[8]{0} fusion(%g), kind=kCustom
}
"""
    for middle, overlapped in ("%f = f32[8]{0} fusion(%a), kind=kLoop", 1), ("%f = f32[8]{0} copy(%a)", 0):
        totals = bytes_by_kind(find_collectives(text.replace("MIDDLE", middle)))
        assert totals["all-gather"]["overlapped"] == overlapped and totals["all-reduce"]["overlapped"] == 0
