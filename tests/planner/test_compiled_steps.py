"""What must hold of the programs compiled for an H100 and a v5e: no logits and no scores of all positions in memory,
loops whose lengths are known, donated buffers; and of the presets on an H100 the bounds on bytes, launches and memory.

Each is compiled in a process of its own, where the compiler is installed; a preset, with all its layers, takes minutes.
"""

import math

import pytest
from fixtures.compilers import NEEDS_CUDA, NEEDS_LIBTPU, last_json

from benchmarks.compiled_steps import CASES

FACTS = """
import json, re, sys
from dataclasses import replace
from jaxlm.planner.topology import find_target, set_compiler_flags
set_compiler_flags(sys.argv[1])
import numpy as np
from benchmarks.compiled_steps import use_stand_in
from jaxlm.distributed.platforms import tracing_for
from jaxlm.distributed.placement import batch_shardings
from jaxlm.distributed.sharding import make_mesh, with_shardings
from jaxlm.experiment import load_experiment
from jaxlm.perf.flops import shape_structs, synthetic_batch
from jaxlm.planner.hbm_traffic import program_costs
from jaxlm.pytree import tree_bytes
from jaxlm.training.step import build_compiled_step, make_init_fn

name, layers, rows = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
experiment, target = load_experiment(name), find_target(sys.argv[1])
if not target.chip.is_tpu:
    use_stand_in()
model = experiment.model.clone(layers=layers, vocab=8192)
batching = replace(experiment.batching, rows=rows)
experiment = replace(experiment, model=model, batching=batching, grad_accum=1)
batch, mesh = shape_structs(synthetic_batch(experiment)), make_mesh({}, target.devices)
with tracing_for(target.chip, {"chunk_logits": 2**24}):
    step = build_compiled_step(experiment, make_init_fn(experiment), mesh)
    lowered = step.train_step.lower(step.abstract_state, with_shardings(batch, batch_shardings(batch, mesh)))
compiled = lowered.compile()
text, analysis = compiled.as_text(), compiled.memory_analysis()
shapes = {tuple(int(n) for n in s.split(",")) for s in re.findall(r"\\b(?:f32|bf16|s32|pred)\\[([\\d,]+)\\]", text)}
print(json.dumps({
    "shapes": sorted(shapes), "costs": program_costs(text), "donated": analysis.alias_size_in_bytes,
    "state": tree_bytes(step.abstract_state), "rows": rows, "length": batching.length, "heads": model.heads,
}))
"""


def check(program):
    rows, length, heads = program["rows"], program["length"], program["heads"]
    assert not [shape for shape in program["shapes"] if shape[-1] == 8192 and math.prod(shape[:-1]) >= rows * length]
    assert not [
        shape for shape in program["shapes"] if shape[-2:] == [length, length] and math.prod(shape[:-2]) >= rows * heads
    ]
    assert program["donated"] >= program["state"]


@pytest.mark.slow
@NEEDS_CUDA
def test_a_gpu():
    program = last_json("-c", FACTS, "h100:1", "experiments.gpt2:small", 2, 16)
    check(program)
    assert program["costs"][2] == 0, "turns of loops whose length the compiler does not know"


@pytest.mark.slow
@NEEDS_LIBTPU
def test_a_tpu():
    check(last_json("-c", FACTS, "v5e:1x1", "experiments.gpt2:small", 2, 8))


@pytest.mark.slow
@NEEDS_CUDA
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.max_bytes])
def test_the_bounds_of_a_preset(name):
    """Bytes and launches of a step with the choices of a GPU, the memory of the chip, and no turn that waits."""
    found = last_json("-m", "benchmarks.compiled_steps", "--worker", name, "after")
    assert found["fits"] and found["host_turns"] == 0, found
    assert found["bytes"] <= CASES[name].max_bytes, found
    assert found["launches"] <= (CASES[name].max_launches or found["launches"]), found
