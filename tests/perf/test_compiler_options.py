"""XLA's options for the train step: which devices get which, and what happens to one that XLA does not know."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fixtures.cli_runs import environment

from jaxlm.distributed.sharding import data_mesh, make_mesh
from jaxlm.perf import compiler_options
from jaxlm.perf.compiler_options import gpu_options, step_options, tpu_options


def mesh_of(kind, size=1):
    devices = [SimpleNamespace(device_kind=kind)] * size
    return SimpleNamespace(devices=SimpleNamespace(flat=devices), size=size)


def test_the_options_of_a_tpu():
    assert tpu_options(mesh_of("TPU v5 lite", 4)) == {}
    assert tpu_options(mesh_of("TPU v6 lite")) == {"xla_tpu_scoped_vmem_limit_kib": "98304"}
    assert tpu_options(mesh_of("TPU v5", 8)) == {"xla_tpu_scoped_vmem_limit_kib": "65472"}


def test_the_options_of_a_gpu(tmp_path):
    one, several = mesh_of("NVIDIA H200"), mesh_of("NVIDIA H200", 8)
    assert gpu_options(one, exact=False, step_timeout=0.0, autotune_folder=None) == {}
    assert gpu_options(several, exact=False, step_timeout=1800.0, autotune_folder=None) == {
        "optimization_level": 19, "xla_gpu_nccl_termination_timeout_seconds": "1800"
    }  # fmt: skip
    assert gpu_options(one, exact=True, step_timeout=0.0, autotune_folder=tmp_path) == {
        "xla_gpu_exclude_nondeterministic_ops": True, "xla_gpu_per_fusion_autotune_cache_dir": str(tmp_path)
    }  # fmt: skip


def test_a_cpu_and_absent_devices_have_none():
    assert step_options(data_mesh(), exact=True, step_timeout=1800.0) == {} == step_options(None)


def test_an_unknown_option_costs_a_warning_and_no_more():
    known, unknown = ("xla_cpu_enable_fast_math", False), ("xla_no_such_option", "1")
    with pytest.warns(UserWarning, match="XLA does not take xla_no_such_option: the step is compiled without"):
        assert compiler_options._known_options((unknown, known), make_mesh({"data": 2})) == (known,)


ACCEPTED = """
import json, sys
from jaxlm.planner.topology import find_target, set_compiler_flags
set_compiler_flags("v5e")
from jaxlm.distributed.sharding import make_mesh
from jaxlm.perf.compiler_options import step_options
name, slices = sys.argv[1], int(sys.argv[2])
target = find_target(name, slices)
mesh = make_mesh({"data": -1}, target.devices)
print(json.dumps(step_options(mesh, exact=True, step_timeout=1800.0)))
"""


@pytest.mark.parametrize(
    "name, slices, count", [("v5e:2x2", 1, 0), ("v5p:2x2x1", 2, 1), ("v6e:2x2", 1, 1), ("h100:8", 1, 3)]
)
def test_the_compilers_take_all_options(name, slices, count):
    """None is left out, with or without a device."""
    module = "jax_plugins" if name.startswith("h100") else "libtpu"
    if importlib.util.find_spec(module) is None and (module != "libtpu" or "TPU_LIBRARY_PATH" not in os.environ):
        pytest.skip(f"needs {module}")
    command = [sys.executable, "-W", "error", "-c", ACCEPTED, name, str(slices)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])) == count
