"""Schedules against their formulas, the optimizer against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures.zoo import TRANSFORMER, params_of

from jaxlm.optim import AdamW, Constant, CosineDecay, InverseSqrt, LinearDecay

STEPS, WARMUP, PEAK = 50, 8, 3e-3
N = np.arange(STEPS + 10)
WARM = np.minimum(1.0, (N + 1) / WARMUP)
DONE = np.clip((N - WARMUP) / (STEPS - WARMUP), 0, 1)

FORMULAS = {
    Constant(PEAK): np.full(N.shape, PEAK),
    Constant(PEAK, WARMUP): PEAK * WARM,
    InverseSqrt(PEAK, WARMUP): PEAK * np.minimum((N + 1) / WARMUP, np.sqrt(WARMUP / (N + 1))),
    InverseSqrt(PEAK, 0): PEAK / np.sqrt(N + 1),
    CosineDecay(PEAK): PEAK * (0.1 + 0.9 * (1 + np.cos(np.pi * np.clip(N / STEPS, 0, 1))) / 2),
    CosineDecay(PEAK, WARMUP, 0.2): PEAK * WARM * (0.2 + 0.8 * (1 + np.cos(np.pi * DONE)) / 2),
    LinearDecay(PEAK, WARMUP): PEAK * WARM * (1 - DONE),
    LinearDecay(PEAK, WARMUP, 0.5): PEAK * WARM * (1 - DONE / 2),
}


@pytest.mark.parametrize("schedule", FORMULAS, ids=str)
def test_schedules(schedule):
    rate = schedule.build(STEPS)
    np.testing.assert_allclose([rate(n) for n in N], FORMULAS[schedule], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(jax.jit(rate)(jnp.asarray(N)), FORMULAS[schedule], rtol=1e-5, atol=1e-9)


def test_the_rate_of_the_paper():
    """d^-0.5 * min(n^-0.5, n * warmup^-1.5) with n from 1: the highest at the end of the warm-up."""
    width, warmup, n = 512, 4000, np.arange(1, 20_000, 7)
    paper = width**-0.5 * np.minimum(n**-0.5, n * warmup**-1.5)
    ours = InverseSqrt((width * warmup) ** -0.5, warmup).build(1)
    np.testing.assert_allclose(ours(n - 1), paper, rtol=1e-6)
    assert n[np.argmax(paper)] == pytest.approx(warmup, abs=7)


def test_needs_total_steps():
    """True if and only if another number of steps changes the rates of the first steps."""
    for schedule in FORMULAS:
        same = np.allclose(schedule.build(STEPS)(N), schedule.build(2 * STEPS)(N))
        assert getattr(schedule, "needs_total_steps", False) != same


def gradients(count: int, scale: float = 1.0):
    rng = np.random.default_rng(1)
    shapes = {"kernel": (4, 3), "bias": (3,)}
    return [{k: (scale * rng.normal(size=s)).astype(np.float32) for k, s in shapes.items()} for _ in range(count)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_twenty_steps_against_torch(weight_decay, clip):
    torch = pytest.importorskip("torch")
    schedule, start = LinearDecay(1e-2, 4), gradients(1)[0]
    optimizer = AdamW(schedule, b1=0.9, b2=0.98, eps=1e-9, weight_decay=weight_decay, clip=clip).build(20)
    ours, state = start, optimizer.init(start)
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [{"params": theirs["kernel"]}, {"params": theirs["bias"], "weight_decay": 0.0}]
    adam = torch.optim.AdamW if weight_decay else torch.optim.Adam
    reference = adam(groups, lr=1.0, betas=(0.9, 0.98), eps=1e-9, weight_decay=weight_decay)
    update = jax.jit(optimizer.update)
    for step, grads in enumerate(gradients(20, 2.0)):
        updates, state = update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name])
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        for group in reference.param_groups:
            group["lr"] = float(schedule.build(20)(step))
        reference.step()
        for name, parameter in theirs.items():
            np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=0, atol=1e-6)


def test_clipping_leaves_small_gradients_alone():
    small, large = ({"kernel": np.full((2, 2), x, np.float32)} for x in (0.1, 10.0))
    plain, clipped = AdamW(eps=1.0).build(1), AdamW(eps=1.0, clip=1.0).build(1)
    one, other = (o.update(small, o.init(small), small)[0] for o in (plain, clipped))
    np.testing.assert_array_equal(one["kernel"], other["kernel"])
    cut = clipped.update(large, clipped.init(large), large)[0]
    same = plain.update({"kernel": np.full((2, 2), 0.5, np.float32)}, plain.init(large), large)[0]
    np.testing.assert_allclose(cut["kernel"], same["kernel"], rtol=1e-5)


def test_matrices_decay_and_vectors_do_not():
    """With zero gradients only decayed parameters change; stacked layers are treated alike."""
    params = params_of(TRANSFORMER)
    optimizer = AdamW(Constant(1.0), weight_decay=0.5).build(1)
    still = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    seen = set()
    for (path, update), leaf in zip(jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(params), strict=True):
        decays = path[-1].key in ("kernel", "embedding")
        seen.add(path[-1].key)
        np.testing.assert_allclose(update, -0.5 * leaf if decays else np.zeros_like(leaf), rtol=1e-6, err_msg=str(path))
    assert seen == {"kernel", "bias", "scale", "embedding"}
