"""FLOPs counted in jaxprs against counts by hand, and of whole models against the usual formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.experiment import load_experiment
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.properties import abstract_params
from jaxlm.objectives.next_token import NextToken
from jaxlm.perf.chips import CHIPS, chip_by_name, chip_for_device_kind
from jaxlm.perf.flops import (
    causal_attention_flops,
    count_flops,
    jaxpr_flops,
    model_flops,
    shape_structs,
    synthetic_batch,
    unknown_trip_count,
)
from jaxlm.types import Batch

A, B = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((5, 7), jnp.float32)
PRODUCT = 2 * 3 * 5 * 7


def test_a_product_and_its_gradients():
    assert count_flops(jnp.dot, A, B) == PRODUCT
    assert count_flops(jax.grad(lambda a, b: jnp.sin(a @ b).sum(), argnums=(0, 1)), A, B) == 3 * PRODUCT


def test_a_scan_counts_once_per_iteration():
    def repeated(a, b):
        return jax.lax.scan(lambda a, _: ((a @ b) @ b.T, None), a, None, length=11)[0]

    assert count_flops(repeated, A, B) == 11 * 2 * PRODUCT
    assert count_flops(lambda a, b: jax.lax.map(lambda _: repeated(a, b), jnp.arange(4)), A, B) == 44 * 2 * PRODUCT


def test_recomputed_products_count_again():
    def total(a, b):
        return jax.checkpoint(lambda a: jnp.sin(jnp.sin(a @ b) @ b.T))(a).sum()

    plain = jax.grad(lambda a, b: jnp.sin(jnp.sin(a @ b) @ b.T).sum())
    assert count_flops(jax.grad(total), A, B) == count_flops(plain, A, B) + 2 * PRODUCT


def test_a_loop_of_unknown_length_counts_by_its_slices():
    def walked(x, count):
        def body(at, total):
            return total + (jax.lax.dynamic_slice_in_dim(x, at * 2, 2) @ jnp.ones((5, 7))).sum()

        return jax.lax.fori_loop(0, count, body, 0.0)

    x = jax.ShapeDtypeStruct((12, 5), jnp.float32)
    jaxpr = jax.make_jaxpr(walked)(x, jnp.int32(0)).jaxpr
    assert jaxpr_flops(jaxpr) == 6 * 2 * 2 * 5 * 7 and unknown_trip_count(jaxpr) == 6


def test_a_convolution():
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 9, 3), (4, 3, 6)))

    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))

    assert count_flops(convolved, x, kernel) == 2 * 2 * 6 * 6 * 4 * 3  # rows, places, features, taps, channels


def test_a_decoder_is_six_times_its_parameters_and_attention():
    """6 N D + 12 L D T of each token (Chowdhery et al. 2022, appendix B); N without the table of positions and with
    the embeddings once, as the output."""
    experiment = load_experiment("experiments.gpt2:small")
    params = abstract_params(experiment.model)
    matrices = [leaf for leaf in jax.tree.leaves(params["stack"]) if leaf.ndim == 3]
    count = sum(leaf.size for leaf in matrices) + params["embedding"].size
    batch, model = shape_structs(synthetic_batch(experiment)), experiment.model
    rows, length = batch.target_BT.shape
    attention = 12 * model.layers * model.width * length * rows * length
    found = model_flops(model, experiment.objective, params, batch)
    assert found == pytest.approx(6 * count * rows * length + attention, rel=0.01)
    assert causal_attention_flops(model, batch) == attention


def test_remat_scan_and_dropout_do_not_change_the_flops_of_the_model():
    base = EncoderDecoder(11, 8, 2, 16, 1, 2)
    ids, valid = np.full((4, 16), 4, np.int32), np.ones((4, 16), bool)
    batch = Batch(source_BS=ids, source_valid_BS=valid, target_BT=ids, target_valid_BT=valid, label_BT=ids)
    params = abstract_params(base)
    models = base, base.clone(scan=True, remat=True, dropout=0.1)
    assert len({model_flops(model, NextToken(), params, batch) for model in models}) == 1


KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "7x",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA L4": "l4",
}


def test_every_chip_is_found_by_its_device_kind():
    assert {kind: chip_for_device_kind(kind).name for kind in KINDS} == KINDS
    assert (
        chip_for_device_kind("cpu") is None
        and chip_for_device_kind("NVIDIA L40S") is None
        and chip_by_name("v9") is None
    )
    assert len({chip.name for chip in CHIPS}) == len(CHIPS)
    assert chip_by_name("v4").peak_flops("bfloat16") == 275e12  # one device of JAX, both of its cores
    assert (
        chip_by_name("7x").peak_flops("bfloat16") == 2307e12 / 2
        and chip_by_name("h100").peak_flops("float32") == 494e12
    )
