"""Plans: bytes and collectives of known programs, analytic against compiled plans, and the command line."""

import gzip
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.cli_runs import command  # noqa: F401
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.distributed.sharding import make_mesh
from jaxlm.errors import UserError
from jaxlm.experiment import load_experiment
from jaxlm.perf.chips import chip_by_name, chip_for_device_kind
from jaxlm.perf.collectives import Collective, find_collectives
from jaxlm.perf.flops import synthetic_batch
from jaxlm.planner import estimates
from jaxlm.planner.bench import run_benchmark
from jaxlm.planner.estimates import run_cost, step_seconds, wire_bytes
from jaxlm.planner.hbm_traffic import program_costs
from jaxlm.planner.plan import PlanRequest, count_workload, make_plan
from jaxlm.planner.search import candidate_fixes, mesh_flag, suggest_fix, sweep
from jaxlm.planner.topology import find_target
from jaxlm.training.run_options import RunOptions
from jaxlm.training.step import build_compiled_step, make_init_fn

SMALL = ["--model.width", "16", "--model.hidden", "16", "--model.heads", "2", "--model.layers", "1"]


@pytest.fixture(scope="module")
def tiny():
    experiment = load_experiment("experiments.quickstart")
    model = experiment.model.clone(width=16, heads=2, hidden=32, encoder_layers=1, decoder_layers=1, scan=True)
    return replace(experiment, model=model, batching=replace(experiment.batching, length=16, tokens=256))


def test_no_step_compiles_after_the_second(tiny):
    made = build_compiled_step(tiny, make_init_fn(tiny), None)
    state, batch, programs = made.init_state(), synthetic_batch(tiny), []
    for _ in range(4):
        state, _ = made.train_step(state, batch)
        programs.append(made.train_step._cache_size())
    assert programs[1:] == [programs[1]] * 3


def test_groups_of_collectives_are_read_in_every_form():
    def group(text):
        line = f"  %a = f32[4]{{0}} all-reduce(%x), channel_id=1, {text}, use_global_device_ids=true"
        return find_collectives(f"ENTRY %main (x: f32[4]) -> f32[4] {{\n{line}\n}}")[0].replica_group

    assert group("replica_groups={{0,2},{1,3}}") == (0, 2)
    assert group("replica_groups=[2,2]<=[4]") == (0, 1)
    assert group("replica_groups=[2,2]<=[2,2]T(1,0)") == (0, 2)
    assert group("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}") == (0, 2)
    assert group("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}") == (0, 1, 2, 3)


def test_bytes_of_a_ring():
    assert wire_bytes(Collective("all-reduce", (), 1, 800, ()), 8) == 1400
    assert wire_bytes(Collective("all-gather", (), 1, 800, ()), 8) == 700
    assert wire_bytes(Collective("reduce-scatter", (), 1, 100, ()), 8) == 700
    assert wire_bytes(Collective("collective-permute", (), 3, 800, ()), 2) == 800


def test_moved_bytes_of_a_known_program():
    """Two arguments are read, the product is written, and read by the caller."""
    x = jnp.ones((64, 64))
    text = jax.jit(lambda x, y: x @ y).lower(x, x).compile().as_text()
    assert program_costs(text).bytes_moved == pytest.approx(4 * 64 * 64 * 4, rel=0.01)

    def repeated(length):
        loop = jax.jit(lambda x: jax.lax.scan(lambda x, _: (jnp.sin(x) @ x, None), x, None, length=length)[0])
        return program_costs(loop.lower(x).compile().as_text()).bytes_moved

    assert (repeated(60) - repeated(40)) % (20 * 2 * 64 * 64 * 4) < 20 * 100  # whole arrays, and the counter
    assert repeated(60) > 60 * 2 * 2 * 64 * 64 * 4


def test_collectives_of_loops_count_by_their_conditions():
    mesh = make_mesh({"data": 8})
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def repeated(x, w):
        return jax.lax.scan(lambda w, _: (w + (x @ w).sum(0)[:, None] * 0.1, None), w, None, length=7)[0]

    shapes = jax.ShapeDtypeStruct((16, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
    step = jax.jit(repeated, in_shardings=(rows, whole), out_shardings=whole).lower(*shapes).compile()
    (found,) = find_collectives(step.as_text().replace("known_trip_count", "unknown"))
    assert found.count == 7 and found.replica_group == tuple(range(8))


def test_seconds_follow_from_the_table_of_chips():
    chip, sums = chip_by_name("v5e"), Collective("all-reduce", (), 1, 10**9, (0, 1))
    one = step_seconds(chip, "bfloat16", 197e12, 819e9, [sums], [0, 0, 1, 1])
    assert (one.compute, one.memory, one.network) == (1.0, 1.0, 0.0)
    assert (
        one.links == pytest.approx(1e9 / 200e9)
        and one.upper_bound == pytest.approx(2 + one.links)
        and one.lower_bound == 1.0
    )
    across = step_seconds(chip, "bfloat16", 0, 0, [replace(sums, replica_group=(0, 2))], [0, 0, 1, 1])
    assert across.links == 0.0 and across.network == pytest.approx(1e9 / 3.125e9)
    assert run_cost(3600.0, 10, 4, 2.0) == {"hours": 10.0, "chip_hours": 40.0, "cost": 80.0}


def test_out_of_memory_messages_of_xla():
    message = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: ... (21.50G) exceeds available HBM (15.75G)"
    assert estimates.oom_bytes(RuntimeError(message)) == int(21.5 * 2**30)
    assert estimates.oom_bytes(RuntimeError("RESOURCE_EXHAUSTED: no number")) == 0
    assert estimates.oom_bytes(RuntimeError("something else")) is None


def test_the_state_is_sharded_by_the_mesh(tiny):
    request = PlanRequest("tiny", tiny, find_target("a100:8"))
    whole, cut = make_plan(request), make_plan(replace(request, mesh_shape={"fsdp": 8}))
    assert 6 < whole.memory["parameters"] / cut.memory["parameters"] <= 8  # what is not a matrix stays whole
    assert whole.memory["batch"] == cut.memory["batch"] and whole.model_flops == cut.model_flops
    assert set(whole.collectives) == {"all-reduce"} and set(cut.collectives) == {"all-gather", "reduce-scatter"}
    assert json.loads(json.dumps(cut.to_json()))["fits"] is True


def test_fixes_of_a_step_that_does_not_fit():
    """GPT-2 XL, analytically on L4s, and the candidate fixes."""
    request = PlanRequest("xl", load_experiment("experiments.gpt2:xl"), find_target("l4:8"))
    plan = make_plan(request)
    assert plan.fits is False and plan.memory["total"] > 20 * 2**30
    options = [options for options, _ in candidate_fixes(request)]
    assert options[0] == "--mesh fsdp=8" and "--remat full" in " ".join(options)
    cut = make_plan(replace(request, mesh_shape={"fsdp": 8}, run_options=RunOptions(remat="full")))
    assert cut.fits is True and cut.memory["activations"] < plan.memory["activations"]


def test_a_sweep_ranks_meshes_and_micro_batches(tiny):
    plans = sweep(PlanRequest("tiny", tiny, find_target("a100:4")), lambda text: None)
    assert len({tuple(plan.mesh.items()) for plan in plans}) == 6
    times = [plan.seconds.upper_bound for plan in plans]
    assert times == sorted(times) and all(plan.fits for plan in plans)
    assert mesh_flag(plans[0].mesh).count("=") >= 1


def test_device_kinds_match_the_table_of_chips():
    kinds = {
        "TPU v4": "v4",
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v5p": "v5p",
        "TPU v6 lite": "v6e",
        "TPU7x": "7x",
    }
    kinds |= {
        "NVIDIA A100-SXM4-40GB": "a100",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA L4": "l4",
    }
    assert {kind: chip_for_device_kind(kind).name for kind in kinds} == kinds
    others = [
        "cpu",
        "TPU v3",
        "TPU v4 lite",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA GH200 480GB",
        "NVIDIA L40S",
    ]
    others += ["NVIDIA H200 NVL", "NVIDIA GB200", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"]
    assert {chip_for_device_kind(kind) for kind in others} == {None}


def test_the_best_of_a_sweep_are_compiled(tiny):
    status = []
    here = replace(find_target("here"), num_devices=2, devices=jax.devices()[:2])
    plans = sweep(PlanRequest("tiny", tiny, here), status.append, compile_best=1)
    assert plans[0].compile_seconds and all(plan.compile_seconds is None for plan in plans[1:])
    assert len(status) == 2 and status[1].startswith("compiling 1 of 1: --mesh ")


def test_a_fix_is_compiled_and_fits(tiny):
    """On devices with a memory between that of the whole step and that of the step sharded over two."""
    here = replace(find_target("here"), chip=chip_by_name("a100"), num_devices=2, devices=jax.devices()[:2])
    whole, cut = (make_plan(PlanRequest("tiny", tiny, here, {axis: 2})) for axis in ("data", "fsdp"))
    assert cut.memory["total"] < whole.memory["total"]
    room = (cut.memory["total"] + whole.memory["total"]) // 2
    small = replace(here, chip=replace(chip_by_name("a100"), memory=room, usable_fraction=1.0))
    request, status = PlanRequest("tiny", tiny, small, {"data": 2}), []
    plan = make_plan(request)
    fix = suggest_fix(plan, request, status.append)
    assert plan.fits is False and fix is not None and status
    assert fix[0].startswith("--mesh fsdp=2") and fix[1].fits and fix[1].compile_seconds


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5p:4x4", "h100:x", "tpu"])
def test_an_invalid_topology_is_refused(name):
    with pytest.raises(UserError, match="--topology"):
        find_target(name)


def test_no_step_to_plan():
    with pytest.raises(UserError, match="closed form"):
        count_workload(load_experiment("experiments.ngram:shakespeare"))
    with pytest.raises(UserError, match="closed form"):
        run_benchmark(load_experiment("experiments.ngram:shakespeare"), print)


def test_the_command_compiles_for_this_machine(command):  # noqa: F811
    result = command("plan", "experiments.char_gpt:cpu", "--mesh", "data=1,fsdp=2", "--json", *SMALL)
    assert result.code == 0, result.err
    found = json.loads(result.lines[-1])
    assert found["compile_seconds"] > 0 and found["mesh"] == {"fsdp": 2} and found["fits"] is None
    assert found["memory"]["total"] > found["memory"]["parameters"] > 0 and found["collectives"]["all-gather"]
    assert command("plan", "experiments.char_gpt:cpu", "--topology", "v9:1").code == 1


def test_the_command_reports_a_step_that_does_not_fit(command):  # noqa: F811
    result = command("plan", "experiments.gpt2:xl", "--topology", "l4:8", "--price", "0.7")
    assert result.code == 1 and b"does not fit" in result.out and b"fits with   --mesh fsdp=8" in result.out
    assert b"cost" in result.out
    swept = command("plan", "experiments.gpt2:small", "--topology", "l4:2", "--sweep")
    assert swept.code == 0 and len(swept.lines) > 6


def test_the_command_bench(command, tmp_path):  # noqa: F811
    words = ["--synthetic", "--steps", "4", "--json", "--mesh", "data=1", "--profile", tmp_path / "trace", *SMALL]
    result = command("bench", "experiments.char_gpt:cpu", *words)
    assert result.code == 0, result.err
    found = json.loads(result.lines[-1])
    assert found["steps"] == 4 and found["tokens_per_second"] > 0 and found["mfu"]["full"] == "n/a"
    at = found["step_seconds"]
    assert 0 < at["p10"] <= at["p50"] <= at["p90"] and set(found["compile_seconds"]) == {"cold", "warm"}
    assert np.isfinite(found["peak_memory_bytes"])
    (written,) = (tmp_path / "trace").rglob("*.trace.json.gz")  # what Perfetto opens; XProf opens the other file
    assert any(event.get("dur") for event in json.loads(gzip.decompress(written.read_bytes()))["traceEvents"])
    assert list(written.parent.glob("*.xplane.pb"))


def test_a_profile_needs_a_folder(command, tmp_path):  # noqa: F811
    (tmp_path / "taken").touch()
    result = command("bench", "experiments.char_gpt:cpu", "--profile", tmp_path / "taken")
    assert result.code == 1 and "--profile" in result.err and "name another one" in result.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--compile-best", "2"], "--sweep"),
        (["--sweep", "--compile-best", "2", "--analytic"], "without --analytic"),
        (["--sweep", "--mesh", "data=8"], "leave them out"),
        (["--sweep", "--compile-best", "2", "--topology", "l4:8"], "nothing here can compile"),
        (["--decode-batch-size", "8", "--topology", "l4:8"], "no formula"),
    ],
)
def test_contradictory_options_are_refused(command, words, expected):  # noqa: F811
    result = command("plan", "experiments.char_gpt:cpu", *words)
    assert result.code in (1, 2) and expected in result.err
