"""The memory of a DPO step: log-probabilities by chunks against the logits of all positions at once.

    python -m benchmarks.preference_memory
    python -m benchmarks.preference_memory --rows 8 --length 512 --vocab 49152 --layers 2

Compiles both steps for this machine, does not run them, and prints for each the peak of its temporary arrays and its
largest array. The answers fill the second half of each row. The reference is stored: two numbers a row.
"""

import argparse
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm import Decoder
from jaxlm.objectives import answers
from jaxlm.objectives.log_probs import token_log_probs
from jaxlm.objectives.preference import PairwisePreference
from jaxlm.training.state import create_train_state
from jaxlm.training.step import make_train_step
from jaxlm.types import Array, Batch


def main() -> None:
    """Print a line for each form and the ratio of their peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"rows": 8, "length": 512, "vocab": 49_152, "width": 576, "layers": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    peaks = {}
    for name, function in {"materialized": materialized_log_probs, "chunked": token_log_probs}.items():
        answers.token_log_probs = function
        compiled = compile_step(options)
        memory, text = compiled.memory_analysis(), compiled.as_text()
        shapes = (np.prod([int(n) for n in s.split(",")]) for s in re.findall(r"\b(?:f32|bf16|s32)\[([\d,]+)\]", text))
        peaks[name] = memory.temp_size_in_bytes
        held = memory.argument_size_in_bytes
        print(
            f"{name:12}  temporary arrays {peaks[name] / 2**20:8,.0f} MiB, parameters and optimizer "
            f"{held / 2**20:6,.0f} MiB, largest array {max(shapes):13,} elements"
        )
    logits = 2 * options.rows * options.length * options.vocab
    print(f"logits of all positions: {logits:,} elements, {4 * logits / 2**20:,.0f} MiB of float32")
    print(f"chunked / materialized: {peaks['chunked'] / peaks['materialized']:.2f}")


def materialized_log_probs(readout, features_BTD: Array, label_BT: Array, valid_BT: Array) -> Array:
    """`token_log_probs` by its definition."""
    log_p_BTV = jax.nn.log_softmax(readout(features_BTD))
    return jnp.where(valid_BT, jnp.take_along_axis(log_p_BTV, label_BT[..., None], -1)[..., 0], 0.0)


def compile_step(options: argparse.Namespace):
    """The train step of a Llama-like decoder on one full batch of pairs."""
    model = Decoder(
        options.vocab, options.width, options.width // 64, 8 * options.width // 3 // 64 * 64, options.layers,
        position="rotary", norm_kind="rms", activation="swiglu", qkv_bias=False, out_bias=False, ffn_bias=False,
    )  # fmt: skip
    shape = options.rows, options.length
    ids, valid = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)
    fields = {"target_BT": ids, "label_BT": ids, "target_valid_BT": valid, "loss_mask_BT": valid}
    reference = jax.ShapeDtypeStruct((options.rows, 2), jnp.float32)
    batch = Batch(**fields, other=Batch(**fields), reference_logprob_BA=reference)
    optimizer = optax.adamw(1e-4)
    state = jax.eval_shape(partial(create_train_state, model, optimizer, dummy(), 0))
    step = make_train_step(model, PairwisePreference(), optimizer, lambda _: 1e-4)
    return step.lower(state, batch).compile()


def dummy() -> Batch:
    """Shapes for the initial parameters."""
    ids = np.full((1, 8), 4, np.int32)
    return Batch(target_BT=ids, target_valid_BT=ids > 0, label_BT=ids)


if __name__ == "__main__":
    main()
