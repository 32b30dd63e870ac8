"""Plans: bytes and collectives of programs that are known, formulas against compilers, and the command line."""

import gzip
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_runs import command  # noqa: F401
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.chips import chip_named, chip_of
from jaxlm.collectives import Collective, collectives
from jaxlm.errors import UserError
from jaxlm.experiment import load
from jaxlm.parallel import make_mesh
from jaxlm.plan import memory
from jaxlm.plan.bench import bench
from jaxlm.plan.cost import step_seconds, whole_run, wire_bytes
from jaxlm.plan.moved import bytes_moved
from jaxlm.plan.plan import count, make_plan
from jaxlm.plan.search import changes, cure, mesh_for, sweep, written
from jaxlm.plan.shapes import batch_of
from jaxlm.plan.topology import find
from jaxlm.train.machine import PLAIN, Machine
from jaxlm.train.program import fresh_state, program

SMALL = ["--model.width", "16", "--model.hidden", "16", "--model.heads", "2", "--model.layers", "1"]


@pytest.fixture(scope="module")
def tiny():
    experiment = load("experiments.quickstart")
    model = experiment.model.clone(width=16, heads=2, hidden=32, encoder_layers=1, decoder_layers=1, scan=True)
    return replace(experiment, model=model, batching=replace(experiment.batching, length=16, tokens=256))


def test_no_step_compiles_after_the_second(tiny):
    made = program(tiny, fresh_state(tiny), None)
    state, batch, programs = made.create(), batch_of(tiny), []
    for _ in range(4):
        state, _ = made.step(state, batch)
        programs.append(made.step._cache_size())
    assert programs[1:] == [programs[1]] * 3


def test_groups_of_collectives_are_read_in_every_form():
    def group(text):
        line = f"  %a = f32[4]{{0}} all-reduce(%x), channel_id=1, {text}, use_global_device_ids=true"
        return collectives(f"ENTRY %main (x: f32[4]) -> f32[4] {{\n{line}\n}}")[0].group

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
    """Two arguments are read, the product is written, and read by whoever asked."""
    x = jnp.ones((64, 64))
    text = jax.jit(lambda x, y: x @ y).lower(x, x).compile().as_text()
    assert bytes_moved(text) == pytest.approx(4 * 64 * 64 * 4, rel=0.01)

    def repeated(length):
        loop = jax.jit(lambda x: jax.lax.scan(lambda x, _: (jnp.sin(x) @ x, None), x, None, length=length)[0])
        return bytes_moved(loop.lower(x).compile().as_text())

    assert (repeated(60) - repeated(40)) % (20 * 2 * 64 * 64 * 4) < 20 * 100  # whole arrays, and the counter
    assert repeated(60) > 60 * 2 * 2 * 64 * 64 * 4


def test_collectives_of_loops_count_by_their_conditions():
    mesh = make_mesh({"data": 8})
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def repeated(x, w):
        return jax.lax.scan(lambda w, _: (w + (x @ w).sum(0)[:, None] * 0.1, None), w, None, length=7)[0]

    shapes = jax.ShapeDtypeStruct((16, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
    step = jax.jit(repeated, in_shardings=(rows, whole), out_shardings=whole).lower(*shapes).compile()
    (found,) = collectives(step.as_text().replace("known_trip_count", "unknown"))
    assert found.times == 7 and found.group == tuple(range(8))


def test_seconds_are_those_of_the_table():
    chip, sums = chip_named("v5e"), Collective("all-reduce", (), 1, 10**9, (0, 1))
    one = step_seconds(chip, "bfloat16", 197e12, 819e9, [sums], 4, [0, 0, 1, 1])
    assert (one.compute, one.memory, one.network) == (1.0, 1.0, 0.0)
    assert one.links == pytest.approx(1e9 / 200e9) and one.most == pytest.approx(2 + one.links) and one.least == 1.0
    across = step_seconds(chip, "bfloat16", 0, 0, [replace(sums, group=(0, 2))], 4, [0, 0, 1, 1])
    assert across.links == 0.0 and across.network == pytest.approx(1e9 / 3.125e9)
    assert whole_run(3600.0, 10, 4, 2.0) == {"hours": 10.0, "chip_hours": 40.0, "cost": 80.0}


def test_what_xla_says_when_memory_runs_out():
    said = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: ... (21.50G) exceeds available HBM (15.75G)"
    assert memory.asked_for(RuntimeError(said)) == int(21.5 * 2**30)
    assert memory.asked_for(RuntimeError("RESOURCE_EXHAUSTED: no number")) == 0
    assert memory.asked_for(RuntimeError("something else")) is None


def test_the_state_is_cut_as_the_mesh_says(tiny):
    whole, cut = (make_plan("tiny", tiny, find("a100:8"), mesh_for(find("a100:8"), axes)) for axes in ({}, {"fsdp": 8}))
    assert 6 < whole.memory["parameters"] / cut.memory["parameters"] <= 8  # what is not a matrix stays whole
    assert whole.memory["batch"] == cut.memory["batch"] and whole.model_flops == cut.model_flops
    assert set(whole.collectives) == {"all-reduce"} and set(cut.collectives) == {"all-gather", "reduce-scatter"}
    assert json.loads(json.dumps(cut.to_json()))["fits"] is True


def test_what_does_not_fit_is_made_to():
    """GPT-2 XL by formula on one L4, and what is tried next."""
    experiment, target = load("experiments.gpt2:xl"), find("l4:8")
    plan = make_plan("xl", experiment, target, mesh_for(target, {}))
    assert plan.fits is False and plan.memory["total"] > 20 * 2**30
    said = [change[0] for change in changes(experiment, {}, target, PLAIN)]
    assert said[0] == "--mesh fsdp=8" and "--remat full" in " ".join(said)
    cut = make_plan("xl", experiment, target, mesh_for(target, {"fsdp": 8}), machine=Machine(remat="full"))
    assert cut.fits is True and cut.memory["activations"] < plan.memory["activations"]


def test_a_sweep_ranks_meshes_and_micro_batches(tiny):
    plans = sweep("tiny", tiny, find("a100:4"), lambda text: None)
    assert len({tuple(plan.mesh.items()) for plan in plans}) == 6
    times = [plan.seconds.most for plan in plans]
    assert times == sorted(times) and all(plan.fits for plan in plans)
    assert written(plans[0].mesh).count("=") >= 1


def test_devices_are_found_in_the_table():
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
    assert {kind: chip_of(kind).name for kind in kinds} == kinds
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
    assert {chip_of(kind) for kind in others} == {None}


def test_the_best_of_a_sweep_are_compiled_when_asked(tiny):
    said = []
    here = replace(find("here"), count=2, devices=jax.devices()[:2])
    plans = sweep("tiny", tiny, here, said.append, 1)
    assert plans[0].compile_seconds and all(plan.compile_seconds is None for plan in plans[1:])
    assert len(said) == 2 and said[1].startswith("compiling 1 of 1: --mesh ")


def test_a_cure_is_compiled_and_fits(tiny):
    """By memory of our own choice on devices that are here: between what the step takes whole and cut in two."""
    here = replace(find("here"), count=2, devices=jax.devices()[:2])
    machine = {"machine": PLAIN}
    whole = make_plan("tiny", tiny, here, mesh_for(here, {"data": 2}), **machine)
    cut = make_plan("tiny", tiny, here, mesh_for(here, {"fsdp": 2}), **machine)
    assert cut.memory["total"] < whole.memory["total"]
    room = (cut.memory["total"] + whole.memory["total"]) // 2
    small = replace(here, chip=replace(chip_named("a100"), memory=room, usable=1.0))
    plan = make_plan("tiny", tiny, small, mesh_for(small, {"data": 2}), **machine)
    said = []
    found = cure(plan, tiny, {"data": 2}, small, said.append, **machine)
    assert plan.fits is False and found is not None and said
    assert found[0].startswith("--mesh fsdp=2") and found[1].fits and found[1].compile_seconds


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5p:4x4", "h100:x", "tpu"])
def test_what_is_no_topology_is_said(name):
    with pytest.raises(UserError, match="--topology"):
        find(name)


def test_no_step_to_plan():
    with pytest.raises(UserError, match="closed form"):
        count(load("experiments.ngram:shakespeare"))
    with pytest.raises(UserError, match="closed form"):
        bench(load("experiments.ngram:shakespeare"), print)


def test_the_command_compiles_for_what_is_here(command):  # noqa: F811
    asked = command("plan", "experiments.char_gpt:cpu", "--mesh", "data=1,fsdp=2", "--json", *SMALL)
    assert asked.code == 0, asked.err
    found = json.loads(asked.lines[-1])
    assert found["compile_seconds"] > 0 and found["mesh"] == {"fsdp": 2} and found["fits"] is None
    assert found["memory"]["total"] > found["memory"]["parameters"] > 0 and found["collectives"]["all-gather"]
    assert command("plan", "experiments.char_gpt:cpu", "--topology", "v9:1").code == 1


def test_the_command_says_what_does_not_fit(command):  # noqa: F811
    asked = command("plan", "experiments.gpt2:xl", "--topology", "l4:8", "--price", "0.7")
    assert asked.code == 1 and b"does not fit" in asked.out and b"fits with   --mesh fsdp=8" in asked.out
    assert b"cost" in asked.out
    swept = command("plan", "experiments.gpt2:small", "--topology", "l4:2", "--sweep")
    assert swept.code == 0 and len(swept.lines) > 6


def test_the_command_bench(command, tmp_path):  # noqa: F811
    words = ["--synthetic", "--steps", "4", "--json", "--mesh", "data=1", "--profile", tmp_path / "trace", *SMALL]
    asked = command("bench", "experiments.char_gpt:cpu", *words)
    assert asked.code == 0, asked.err
    found = json.loads(asked.lines[-1])
    assert found["steps"] == 4 and found["tokens_per_second"] > 0 and found["mfu"]["full"] == "n/a"
    at = found["step_seconds"]
    assert 0 < at["p10"] <= at["p50"] <= at["p90"] and set(found["compile_seconds"]) == {"cold", "warm"}
    assert np.isfinite(found["peak_memory_bytes"])
    (written,) = (tmp_path / "trace").rglob("*.trace.json.gz")  # what Perfetto opens; XProf the one beside it
    assert any(event.get("dur") for event in json.loads(gzip.decompress(written.read_bytes()))["traceEvents"])
    assert list(written.parent.glob("*.xplane.pb"))


def test_a_profile_needs_a_folder(command, tmp_path):  # noqa: F811
    (tmp_path / "taken").touch()
    asked = command("bench", "experiments.char_gpt:cpu", "--profile", tmp_path / "taken")
    assert asked.code == 1 and "--profile" in asked.err and "name another one" in asked.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compile", "2"], "--sweep"),
        (["--sweep", "--compile", "2", "--formula"], "without --formula"),
        (["--sweep", "--mesh", "data=8"], "leave them out"),
        (["--sweep", "--compile", "2", "--topology", "l4:8"], "nothing here can compile"),
        (["--decode", "8", "--topology", "l4:8"], "no formula"),
    ],
)
def test_options_that_do_not_go_together_are_said(command, words, said):  # noqa: F811
    asked = command("plan", "experiments.char_gpt:cpu", *words)
    assert asked.code in (1, 2) and said in asked.err
