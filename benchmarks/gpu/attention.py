"""Part 1: attention kernels against plain attention in float32, forward and backward: error and time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.gpu.figures import Session, repeats
from jaxlm.cli.device_checks import milliseconds
from jaxlm.cli.system_checks import error_line

MAX_ERROR = 2e-2
"""Of an output or gradient in bfloat16, relative to the largest value of the reference."""


@dataclass(frozen=True)
class Case:
    """Sizes of an attention; `window`: the last positions that a query sees, None for all."""

    rows: int
    target: int
    source: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = True
    window: int | None = None


CASES = {
    "gpt2": Case(16, 1024, 1024, 12, 12, 64),
    "llama": Case(4, 4096, 4096, 32, 8, 128),
    "window": Case(4, 4096, 4096, 32, 8, 128, window=1024),
    "cross": Case(64, 100, 100, 8, 8, 64, causal=False),
    "cross_odd": Case(64, 101, 100, 8, 8, 64, causal=False),
}


def measure(session: Session, name: str) -> None:
    """Errors and milliseconds of every implementation for one case."""
    import jax

    case = _sized(session, CASES[name])
    inputs, length_B, weight = _inputs(case)
    reference = _gradients(_reference(case, length_B), inputs, weight, "highest")
    flops = 4 * case.rows * case.heads * case.target * case.source * case.head_dim * (0.5 if case.causal else 1.0)
    for implementation, attend in _implementations(session, case, length_B).items():
        label = f"{name}, {implementation}"
        backward = jax.jit(partial(_gradients, attend))
        forward = jax.jit(lambda *inputs, attend=attend: attend(*inputs))
        try:
            error = _error(backward(inputs, weight), reference)
            times = [milliseconds(lambda f=forward: f(*inputs), **repeats(session))]
            times.append(milliseconds(lambda f=backward: f(inputs, weight), **repeats(session)))
        except Exception as failure:  # a shape that the kernel refuses is a figure
            is_ours = implementation.startswith("jaxlm")
            session.figure(
                label, error_line(failure), good="jaxlm runs every shape", correct=False if is_ours else None
            )
            continue
        session.figure(f"{label}, error", error, "of the maximum", f"< {MAX_ERROR}", bool(error < MAX_ERROR))
        good = {"rule and lengths": "a half to a third of mask", "jaxlm": "the least of all"}.get(implementation, "")
        session.figure(f"{label}, forward", times[0], "ms", good)
        session.figure(
            f"{label}, forward + backward", times[1], f"ms, {3.5 * flops / times[1] / 1e9:.0f} TFLOP/s", good
        )


def _sized(session: Session, case: Case) -> Case:
    if not session.dry:
        return case
    window = case.window and 16
    source = session.size(case.source, 32)
    return Case(2, source + case.target % 2, source, case.kv_heads // 4 * 2, 2, 16, case.causal, window)


def _inputs(case: Case) -> tuple[tuple[Any, Any, Any], Any, Any]:
    """Queries, keys and values; the valid keys of each row; and the weights of the outputs in the loss."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 4)
    query = case.rows, case.target, case.heads, case.head_dim
    key = case.rows, case.source, case.kv_heads, case.head_dim
    drawn = [jax.random.normal(k, shape, jnp.bfloat16) for k, shape in zip(keys, (query, key, key, query), strict=True)]
    # Every row but the first has padding on its right; the causal cases also where queries are.
    length_B = jnp.maximum(case.source - 7 * jnp.arange(case.rows), case.source // 2).astype(jnp.int32)
    valid_BT = jnp.arange(case.target)[None] < length_B[:, None] if case.causal else jnp.ones((1, case.target), bool)
    weight = jnp.where(valid_BT[:, :, None, None], drawn[3], 0).astype(jnp.bfloat16)
    return (drawn[0], drawn[1], drawn[2]), length_B, weight


def _mask(case: Case, length_B: Any) -> Any:
    """The mask (B, 1, T, S) of valid keys."""
    import jax.numpy as jnp

    distance_TS = jnp.arange(case.target)[:, None] - jnp.arange(case.source)[None]
    mask_TS = jnp.ones_like(distance_TS, bool) if not case.causal else distance_TS >= 0
    if case.window is not None:
        mask_TS &= distance_TS < case.window
    return mask_TS[None, None] & (jnp.arange(case.source)[None] < length_B[:, None])[:, None, None]


def _reference(case: Case, length_B: Any) -> Callable:
    import jax
    import jax.numpy as jnp

    def attend(query: Any, key: Any, value: Any) -> Any:
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
        return jax.nn.dot_product_attention(query, key, value, mask=_mask(case, length_B), implementation="xla")

    return attend


def _implementations(session: Session, case: Case, length_B: Any) -> dict[str, Callable]:
    """Name -> attention(query, key, value). In a dry run XLA takes the place of cuDNN."""
    import jax
    import jax.numpy as jnp

    from jaxlm.nn.attention.mask import UNSORTED, TokenOrder, attention_mask, causal_attention_mask
    from jaxlm.nn.attention.multi_head import dot_product_attention

    kernel = partial(jax.nn.dot_product_attention, implementation="xla" if session.dry else "cudnn")
    lengths = {"key_value_seq_lengths": length_B}
    lengths["query_seq_lengths"] = length_B if case.causal else jnp.full_like(length_B, case.target)
    rule: dict[str, Any] = {"is_causal": True} if case.causal else {}
    rule |= {} if case.window is None else {"local_window_size": (case.window - 1, 0)}

    def jaxlm(query: Any, key: Any, value: Any, order: TokenOrder) -> Any:
        valid_BS = jnp.arange(case.source)[None] < length_B[:, None]
        if case.causal:
            mask = causal_attention_mask(valid_BS, None, case.window, order)
        else:
            target = jnp.ones((case.rows, case.target), bool), None
            mask = attention_mask(valid_BS, None, order, target)
        return dot_product_attention(query, key, value, mask)

    def plain(query: Any, key: Any, value: Any) -> Any:
        return jax.nn.dot_product_attention(query, key, value, mask=_mask(case, length_B), implementation="xla")

    def with_mask(query: Any, key: Any, value: Any) -> Any:
        return kernel(query, key, value, mask=_mask(case, length_B))

    # The rows have their padding at the end already, so that the order does not move them.
    index_BS = jnp.broadcast_to(jnp.arange(case.source), (case.rows, case.source))
    return {
        "jaxlm": partial(jaxlm, order=TokenOrder(index_BS, index_BS)),
        "jaxlm, padding anywhere": partial(jaxlm, order=UNSORTED),
        "plain": plain,
        "mask": with_mask,
        "rule and lengths": partial(kernel, **rule, **lengths),
    }


def _gradients(attend: Callable, inputs: tuple, weight: Any, precision: str | None = None) -> tuple:
    """The output where it has a weight, and the gradients of its weighted sum."""
    import jax
    import jax.numpy as jnp

    def loss(inputs: tuple) -> tuple[Any, Any]:
        output = attend(*inputs)
        weighted = jnp.where(weight != 0, output.astype(jnp.float32), 0.0)
        return (weighted * weight.astype(jnp.float32)).sum(), weighted

    with jax.default_matmul_precision(precision):
        (_, output), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
    return output, *gradients


def _error(actual: tuple, reference: tuple) -> float:
    """The largest difference of an output or gradient, relative to its largest value; NaN if there is one."""
    import jax.numpy as jnp

    pairs = zip(actual, reference, strict=True)
    shares = [jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32)).max() / jnp.abs(y).max() for x, y in pairs]
    return float(jnp.max(jnp.stack([share.astype(jnp.float32) for share in shares])))
