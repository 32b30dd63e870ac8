"""The attention kernels in lowered programs for GPUs and TPUs, which need neither: calls, operands, remat, meshes."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax._src.interpreters.partial_eval import dce_jaxpr

from jaxlm.distributed.platforms import tracing_for
from jaxlm.distributed.sharding import make_mesh, replicated_sharding, with_shardings
from jaxlm.nn.attention import cudnn, kernels, mask
from jaxlm.nn.attention.mask import attention_mask, causal_attention_mask
from jaxlm.nn.attention.multi_head import Attention, dot_product_attention
from jaxlm.nn.layers.linear import FeedForward
from jaxlm.nn.layers.norm import Norm
from jaxlm.nn.transformer.block import TransformerBlock
from jaxlm.nn.transformer.layer_stack import Stack

TARGETS = {"gpu": "cuda", "tpu": "tpu"}
ROWS, LENGTH, HEADS, WIDTH = 4, 256, 4, 64


@pytest.fixture(params=TARGETS)
def platform(request, monkeypatch):
    """Pretend that the program is compiled for this platform, and that cuDNN is there."""
    return pretend(request.param, monkeypatch)


@pytest.fixture
def gpu(monkeypatch):
    return pretend("gpu", monkeypatch)


def pretend(platform: str, monkeypatch) -> str:
    from jax._src.cudnn import fused_attention_stablehlo

    for module in (mask, kernels):
        monkeypatch.setattr(module, "platform_of", lambda x: platform)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: cudnn.PLANNED_VERSION)
    return platform


def calls(text: str) -> list[tuple[str, list[str]]]:
    """(name of the kernel, types of its operands) of each call of cuDNN or Pallas."""
    lines = (line for line in text.splitlines() if "custom_call @__cudnn" in line or "@tpu_custom_call" in line)
    names = re.compile(r"@(__cudnn\$\w+)|kernel_name = \"(\w+)\"")
    return [("".join(names.search(line).groups("")), operands(line)) for line in lines]


def operands(line: str) -> list[str]:
    """The types of the operands of a custom call: `4x256x4x64xbf16`."""
    return re.findall(r"tensor<([^>]*)>", re.search(r": \((.*?)\) ->", line)[1])


def lower(function, platform: str, *arguments) -> str:
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(TARGETS[platform],))
    return lowered.as_text().replace("\\22", '"')


def shapes(target: int = LENGTH, source: int = LENGTH, heads: int = HEADS):
    """Queries, keys and values, bfloat16, with two heads of keys; and the valid positions of both sides."""
    dtype = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    valid = (jax.ShapeDtypeStruct((ROWS, length), jnp.bool_) for length in (target, source))
    return dtype((ROWS, target, heads, WIDTH)), *2 * [dtype((ROWS, source, 2, WIDTH))], *valid


def gradients(rule_of):
    """The gradients of an attention with the mask that `rule_of` gives for the valid positions of both sides."""

    def total(query, key, value, valid_BT, valid_BS):
        seen = rule_of(mask.token_order(valid_BT, None), valid_BT, valid_BS)
        return dot_product_attention(query, key, value, seen).astype(jnp.float32).sum()

    return jax.grad(total, argnums=(0, 1, 2))


RULES = {
    "causal": (LENGTH, lambda order, t, s: causal_attention_mask(t, None, order=order), "CAUSAL", 3),
    "causal, odd": (LENGTH - 1, lambda order, t, s: causal_attention_mask(t, None, order=order), "PADDING_CAUSAL", 5),
    "window": (LENGTH, lambda order, t, s: causal_attention_mask(t, None, 20, order), "CAUSAL", 3),
    "both ways": (LENGTH, lambda order, t, s: attention_mask(t, None, order), "PADDING", 5),
    "cross": (LENGTH - 1, lambda order, t, s: attention_mask(s, None, order, (t, None)), "PADDING", 5),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_arguments_of_cudnn(rule, gpu):
    """Causality and lengths, no bias; the forward and the backward kernel once each."""
    target, rule_of, mask_type, operands_of_forward = RULES[rule]
    source = LENGTH if rule == "cross" else target
    text = lower(gradients(rule_of), gpu, *shapes(target, source))
    (forward, given), (backward, _) = calls(text)
    assert (forward, backward) == ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
    assert len(given) == operands_of_forward
    assert set(re.findall(r'"mask_type": "(\w+)"', text)) == {mask_type}
    assert set(re.findall(r'"sliding_window_length": (\d+)', text)) == {"20" if rule == "window" else "0"}
    assert not re.search(rf"{LENGTH}x{LENGTH}x(f32|bf16)", text)


def test_packed_rows_have_a_mask(gpu):
    """One for all heads, padded to whole blocks."""
    segments = jax.ShapeDtypeStruct((ROWS, LENGTH - 1), jnp.int32)

    def total(query, key, value, valid_BT, _, segment_BT):
        seen = causal_attention_mask(valid_BT, segment_BT)
        return dot_product_attention(query, key, value, seen).astype(jnp.float32).sum()

    text = lower(jax.grad(total, argnums=(0, 1, 2)), gpu, *shapes(LENGTH - 1, LENGTH - 1), segments)
    (forward, given), (backward, _) = calls(text)
    assert (forward, backward) == ("__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward")
    assert given[3] == f"{ROWS}x1x{LENGTH}x{LENGTH}xbf16"
    assert f"{ROWS}x{HEADS}x{LENGTH}x{LENGTH}x" not in text


def kernel_calls(jaxpr) -> list[tuple[str, list[tuple[int, ...]]]]:
    """(name of the kernel, shapes of its operands) of each call in a jaxpr, with those of its loops and branches."""
    found = []
    for equation in jaxpr.eqns:
        name = equation.params.get("name", "") if equation.primitive.name == "pallas_call" else equation.primitive.name
        if name.startswith(("splash_mha", "dot_product_attention")):
            found.append((name, [x.aval.shape for x in equation.invars]))
            continue
        for value in jax.tree.leaves([*equation.params.values()], is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                found += kernel_calls(inner)
    return found


@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_remat_saves_what_the_backward_kernel_needs(platform, scan, remat):
    """The forward kernel runs once, so that a layer has 2 calls for 3; with "full", which saves nothing, twice."""
    attention = Attention(HEADS * WIDTH, HEADS, dtype="bfloat16", parent=None)
    ffn = FeedForward(HEADS * WIDTH, 8, dtype="bfloat16", parent=None)
    block = TransformerBlock(attention, ffn, norm=Norm("pre"), dropout=0.0, dtype="bfloat16", parent=None)
    stack = Stack(block, 2, scan=scan, remat=remat)

    def total(params, x_BTD, valid_BT):
        seen = causal_attention_mask(valid_BT, None, order=mask.token_order(valid_BT, None))
        return jnp.square(stack.apply({"params": params}, x_BTD, seen).astype(jnp.float32)).sum()

    inputs = jnp.zeros((ROWS, LENGTH, HEADS * WIDTH), jnp.bfloat16), jnp.ones((ROWS, LENGTH), bool)
    params = jax.eval_shape(lambda: stack.init(jax.random.key(0), inputs[0], jnp.ones((1, 1, 1), bool)))["params"]
    traced = jax.make_jaxpr(jax.grad(total))(params, *inputs).jaxpr
    used, _ = dce_jaxpr(traced, [True] * len(traced.outvars))
    names = [name for name, _ in kernel_calls(used)]
    layers = 1 if scan else 2  # the body of a scan is there once
    assert sum("fwd" in name for name in names) == layers * (1 if remat == "dots" else 2)
    assert sum("fwd" not in name for name in names) == layers


def sharded(platform: str, axes: dict[str, int]):
    """The kernel calls of a gradient on a mesh of these axes."""
    mesh = make_mesh(axes, jax.devices()[: math.prod(axes.values())])
    inputs = [with_shardings(x, replicated_sharding(mesh)) for x in shapes()]
    return kernel_calls(jax.make_jaxpr(gradients(RULES["causal"][1]))(*inputs).jaxpr)


def test_each_device_has_its_rows_and_heads(platform):
    forward, backward = sharded(platform, {"data": 2, "tensor": 2})
    rows = ROWS // 2, LENGTH, HEADS // 2, WIDTH
    for _, given in (forward, backward):
        assert (rows if platform == "gpu" else (rows[0], rows[2], rows[1], rows[3])) in given


@pytest.mark.parametrize("axes", [{"data": 2, "sequence": 2}, {"tensor": 4}, {"data": 8}], ids=str)
def test_a_mesh_that_does_not_divide_has_no_kernel(platform, axes):
    """Split positions, more devices than heads of keys, or more than rows."""
    assert not sharded(platform, axes)


def test_what_cudnn_does_not_compute(gpu, monkeypatch):
    query, key, *_ = shapes()
    find = kernels.find_attention_kernel
    assert find(query, key) is not None
    others = {"dtype": jnp.float32}, {"shape": (ROWS, LENGTH, HEADS, 132)}, {"shape": (ROWS, 100, HEADS, WIDTH)}
    assert all(find(query.update(**other), key) is None for other in others)
    with tracing_for(choices={"attention_kernel": False}):
        assert find(query, key) is None
    monkeypatch.setattr(kernels, "has_cudnn", lambda: False)
    assert find(query, key) is None
