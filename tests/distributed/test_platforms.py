"""The table of choices by platform: by chip, as options, and without an effect on what is computed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.distributed.platforms import CHOICES, choices_for, parse_choices, resolve_dtype, tracing_for
from jaxlm.errors import UserError
from jaxlm.experiment import load_experiment
from jaxlm.models.decoder import Decoder
from jaxlm.nn.layers.embedding import vocab_logits
from jaxlm.nn.transformer import layer_stack
from jaxlm.nn.transformer.layer_stack import scan_and_remat
from jaxlm.perf.chips import chip_by_name
from jaxlm.perf.flops import synthetic_batch
from jaxlm.training.run_options import RunOptions
from jaxlm.training.step import build_compiled_step, make_init_fn

STEPS = 20
SWITCHES = {
    "unrolled": {"unrolled_depth": 24},
    "scan_remat": {"scan_remat": "dots"},
    "all recomputed": {"scan_remat": "full"},
    "activation_remat": {"activation_remat": True},
    "static loop": {"static_loss": True, "chunk_logits": 1},
    "static, unrolled chunks": {"static_loss": True, "chunk_logits": 2**14},
    "all of a GPU": {"unrolled_depth": 24, "static_loss": True, "chunk_logits": 2**29, "activation_remat": True},
}
"""Choices by which the losses may not change; `attention_kernel` has no effect on a CPU, which has none."""


def test_choices_by_chip():
    """Logits of a chunk grow with the memory; a model's "auto" is the dtype of the platform."""
    assert choices_for() == CHOICES["cpu"] and resolve_dtype("auto") == "float32"
    sizes = {"v5e": 27, "v6e": 28, "v5p": 29, "l4": 27, "h100": 29, "h200": 29}
    for name, exponent in sizes.items():
        with tracing_for(chip_by_name(name)):
            assert choices_for().chunk_logits == 2**exponent, name
            assert resolve_dtype("auto") == "bfloat16" and resolve_dtype("float32") == "float32"
    with tracing_for(chip_by_name("v5e"), {"static_loss": False}), tracing_for(choices={"chunk_logits": 5}):
        assert choices_for() == replace(CHOICES["tpu"], chunk_logits=5, static_loss=False)


def test_layers_by_platform():
    """A GPU unrolls up to 24 layers and keeps their activations if there is room; an explicit option comes first."""
    cpu, gpu = CHOICES["cpu"], CHOICES["gpu"]
    assert [scan_and_remat(True, True, depth, 0.0, cpu) for depth in (2, 48)] == [(True, "dots")] * 2
    assert [scan_and_remat(True, True, 24, room, gpu) for room in (2.4, 2.6)] == [(False, "dots"), (False, "")]
    assert scan_and_remat(True, True, 25, 100.0, gpu) == (True, "dots")
    assert scan_and_remat(True, False, 25, 1.0, gpu) == (True, "dots") and scan_and_remat(True, False, 25, 1.0, cpu)[0]
    assert scan_and_remat(True, "full", 12, 100.0, gpu) == (False, "full")
    assert scan_and_remat(False, False, 99, 0.0, gpu) == (False, "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dtype=float32",
        "static_loss",
        "static_loss=yes",
        "static_loss=0,static_loss=1",
        "chunk_logits=0",
        "scan_remat=x",
    ],
)
def test_wrong_choices_are_refused(text):
    with pytest.raises(UserError, match="expected"):
        parse_choices(text)


def test_choices_are_read_as_options_write_them():
    choices = {"unrolled_depth": 0, "kept_share": 0.5, "scan_remat": "full", "chunk_logits": 7, "static_loss": False}
    (_, written) = RunOptions(choices=choices).memory_options()[0].split()
    assert parse_choices(written) == choices


@pytest.fixture(scope="module")
def experiment():
    small = load_experiment("experiments.char_gpt:cpu")
    model = Decoder(69, 32, 2, 64, 2, max_length=64, scan=True, dropout=0.1, tie_embeddings=False)
    return replace(small, model=model, batching=replace(small.batching, length=32, rows=8))


def losses_of(experiment, choices):
    """The losses of STEPS steps on random ids."""
    made = build_compiled_step(experiment, make_init_fn(experiment), None, RunOptions(choices=choices))
    batch, state, losses = synthetic_batch(experiment), made.init_state(), []
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        ids = rng.integers(4, 69, (8, 33)).astype(np.int32)
        state, metrics = made.train_step(state, replace(batch, target_BT=ids[:, :-1], label_BT=ids[:, 1:]))
        losses.append(metrics.total)
    return np.asarray(jax.device_get(losses))


def with_model(experiment, **fields):
    return replace(experiment, model=experiment.model.clone(**fields))


@pytest.fixture(scope="module")
def plain_losses(experiment):
    return losses_of(experiment, {})


@pytest.mark.parametrize("name", SWITCHES)
def test_no_choice_changes_the_losses(experiment, plain_losses, name):
    np.testing.assert_allclose(losses_of(experiment, SWITCHES[name]), plain_losses, rtol=1e-6)


@pytest.mark.parametrize("memory", [0.0, 80e9], ids=["recomputed", "kept"])
def test_what_is_kept_does_not_change_the_losses(experiment, plain_losses, memory, monkeypatch):
    """Unrolled layers of a model that says `remat`, on a device that has no room for their activations, or has it."""
    rooms = []
    monkeypatch.setattr(layer_stack, "device_memory", lambda _: rooms.append(memory) or memory)
    losses = losses_of(with_model(experiment, remat=True), {"unrolled_depth": 24, "kept_share": 0.4})
    assert rooms
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-6)


def test_two_products_into_a_gated_layer_do_not_change_the_losses(experiment):
    gated = with_model(experiment, activation="swiglu")
    np.testing.assert_allclose(losses_of(gated, {"fused_gates": False}), losses_of(gated, {}), rtol=1e-6)


def test_narrow_logits_are_rounded_and_their_gradients_stay():
    rng = np.random.default_rng(0)
    x_RD, table_VD = jnp.asarray(rng.normal(size=(5, 16)), jnp.bfloat16), jnp.asarray(rng.normal(size=(9, 16)))

    def logits_and_gradient(choices):
        with tracing_for(choices=choices):
            gradient = jax.grad(lambda x: vocab_logits(x, table_VD).sum())(x_RD)
            return vocab_logits(x_RD, table_VD), gradient

    wide, narrow = (logits_and_gradient({"narrow_logits": is_narrow}) for is_narrow in (False, True))
    np.testing.assert_array_equal(narrow[0], wide[0].astype(jnp.bfloat16).astype(jnp.float32))
    assert narrow[0].dtype == jnp.float32 and not np.array_equal(narrow[0], wide[0])
    np.testing.assert_array_equal(narrow[1], wide[1])
