"""Plans compiled for absent hardware, if libtpu or JAX's CUDA plugin is installed."""

import pytest
from fixtures.compilers import NEEDS_CUDA, NEEDS_LIBTPU, last_json

SMALL = ["--model.width", "64", "--model.heads", "2", "--model.hidden", "128", "--model.scan"]
SMALL += ["--batching.length", "128", "--batching.rows", "16", "--model.dtype", "bfloat16"]


def plan(*words):
    return last_json("-m", "jaxlm", "plan", "experiments.char_gpt:cpu", *words, *SMALL, "--json")


@pytest.mark.slow
@NEEDS_LIBTPU
def test_a_slice_of_tpus():
    """With the kernel of attention in it: there are no scores in memory, which grow with the square of the length."""
    found = plan("--topology", "v5e:4x4", "--mesh", "fsdp=16", "--decode-batch-size", "16")
    assert found["compiler"] == "libtpu for v5e" and found["compile_seconds"] > 0 and found["fits"]
    check_collectives(found["collectives"])
    assert 0 < found["mfu"]["lower_bound"] < found["mfu"]["upper_bound"]
    assert found["decoding"]["rows"] == 16 and found["decoding"]["fits"]
    several = plan("--topology", "v5e:2x2", "--num-slices", "2", "--mesh", "data=2,fsdp=4")
    assert several["devices"] == 8 and several["seconds"]["network"] > 0


@pytest.mark.slow
@NEEDS_CUDA
def test_a_node_of_gpus():
    found = plan("--topology", "h100:8", "--mesh", "fsdp=8")
    assert found["compile_seconds"] > 0 and found["fits"]
    check_collectives(found["collectives"])


def check_collectives(by_kind):
    """Parameters are gathered while the device computes, gradients are reduced, and nothing else is exchanged."""
    assert by_kind.keys() <= {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}, by_kind
    assert by_kind["all-gather"]["overlapped"] / by_kind["all-gather"]["count"] > 0.5, by_kind
    assert any(by_kind.get(kind, {}).get("bytes") for kind in ("all-reduce", "reduce-scatter")), by_kind
