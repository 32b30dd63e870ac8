"""The attention kernels in programs compiled for one and eight H100 and for a v5e, where a compiler is installed.

Each is compiled in a process of its own, since a loaded compiler stays.
"""

import json

import pytest
from fixtures.compilers import NEEDS_CUDA, NEEDS_LIBTPU, last_json

LENGTH, LAYERS = 512, 2

FACTS = r"""
import json, re, sys
from jaxlm.planner.topology import find_target, set_compiler_flags
topology, axes, length, layers, scan = sys.argv[1], *map(json.loads, sys.argv[2:])
set_compiler_flags(topology)
import jax
import jax.numpy as jnp
from jaxlm.distributed.sharding import make_mesh, replicated_sharding, row_sharding, with_shardings
from jaxlm.models.decoder import Decoder
from jaxlm.models.properties import abstract_params
from jaxlm.objectives.next_token import NextToken
from jaxlm.types import Batch

model = Decoder(1024, 256, 4, 512, layers, dtype="bfloat16", max_length=length, scan=scan, remat="dots")
devices = find_target(topology).devices
mesh = make_mesh(axes, devices[: 1 if not axes else None])
ids, valid = (jax.ShapeDtypeStruct((8, length), dtype) for dtype in (jnp.int32, jnp.bool_))
batch = with_shardings(Batch(target_BT=ids, target_valid_BT=valid, label_BT=ids), row_sharding(mesh))
params = with_shardings(abstract_params(model), replicated_sharding(mesh))
loss = lambda params, batch: NextToken(0.0)(model, params, batch, None).total
text = jax.jit(jax.value_and_grad(loss)).lower(params, batch).compile().as_text()
print(json.dumps({
    "calls": re.findall(r'custom_call_target="(__cudnn[^"]*|tpu_custom_call)"', text),
    "scores": sorted(set(re.findall(rf"(?:f32|bf16|pred)\[(?:\d+,)*{length},{length}\]", text))),
    "collectives": sorted(set(re.findall(r" (all-gather|all-to-all|collective-permute)(?:-start)?\(", text))),
}))
"""


def facts(topology, axes, scan):
    return last_json("-c", FACTS, topology, *map(json.dumps, (axes, LENGTH, LAYERS, scan)))


@pytest.mark.slow
@NEEDS_CUDA
@pytest.mark.parametrize(("topology", "axes"), [("h100:1", {}), ("h100:8", {"data": 4, "tensor": 2})], ids=str)
def test_cudnn(topology, axes):
    """Each kernel once a layer, though the model has remat; no mask, no scores, and nothing gathered for the order."""
    found = facts(topology, axes, scan=False)
    assert sorted(found["calls"]) == LAYERS * ["__cudnn$fmhaSoftmax"] + LAYERS * ["__cudnn$fmhaSoftmaxBackward"]
    assert not found["scores"] and not found["collectives"]


@pytest.mark.slow
@NEEDS_LIBTPU
def test_splash_attention():
    """One layer, scanned: one forward and one fused backward kernel."""
    found = facts("v5e:2x2", {"data": 4}, scan=True)
    assert found["calls"] == 2 * ["tpu_custom_call"]
    assert not found["scores"] and not found["collectives"]
