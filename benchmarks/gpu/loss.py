"""Part 3: the chunked cross-entropy with its gradients, by the number of logits in a chunk and the kind of its loop."""

from typing import Any

from benchmarks.gpu.figures import Session, repeats
from jaxlm.cli.device_checks import milliseconds

SHAPES = {"gpt2": (16_384, 768, 50_304), "wmt14": (25_000, 512, 37_000), "llama": (8192, 2048, 128_256)}
"""Name -> positions, width of the features, vocabulary."""

SWITCHES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "dynamic trip count": {"static_loss": False},
    **{f"2^{exponent} logits": {"chunk_logits": 2**exponent} for exponent in (25, 27, 28, 29)},
}
"""Label -> choices of `jaxlm.distributed.platforms` that are replaced."""


def measure(session: Session, name: str) -> None:
    """Milliseconds and TFLOP/s as jaxlm chooses the chunks, and with chunks of other sizes."""
    import jax
    import jax.numpy as jnp

    from jaxlm.distributed.platforms import tracing_for
    from jaxlm.losses import cross_entropy

    positions, width, vocab = (session.size(n) for n in SHAPES[name])
    keys = jax.random.split(jax.random.key(0), 3)
    features_BTD = jax.random.normal(keys[0], (1, positions, width), jnp.bfloat16)
    table_VD = 0.02 * jax.random.normal(keys[1], (vocab, width))
    label_BT = jax.random.randint(keys[2], (1, positions), 0, vocab)
    valid_BT = jnp.ones(label_BT.shape, bool)

    def loss(features_BTD: Any, table_VD: Any) -> Any:
        def readout(features: Any) -> Any:
            table = table_VD.astype(jnp.bfloat16)
            return jnp.einsum("btd,vd->btv", features, table, preferred_element_type=jnp.float32)

        return cross_entropy(readout, features_BTD, label_BT, valid_BT).total

    totals = {}
    for label, switched in SWITCHES.items():
        small = {
            name: session.size(int(value)) if name == "chunk_logits" else value for name, value in switched.items()
        }
        with tracing_for(choices=small):
            # A function of its own, so that JAX does not take the program of the last one.
            gradient = jax.jit(jax.value_and_grad(lambda *inputs: loss(*inputs), (0, 1)))
            totals[label] = float(gradient(features_BTD, table_VD)[0])
            time = milliseconds(lambda f=gradient: f(features_BTD, table_VD), **repeats(session))
        rate = 6 * positions * width * vocab / time / 1e9
        session.figure(f"{name}, {label}", time, f"ms, {rate:.0f} TFLOP/s", "half of the bfloat16 product of part 0")
    spread = max(totals.values()) / min(totals.values()) - 1
    session.figure(f"{name}, spread of the loss over chunks", spread, "", "< 1e-4", bool(spread < 1e-4))
