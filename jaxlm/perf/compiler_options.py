"""XLA's options for the train step, by chip.

They go to the compiler with the program: nothing is read from or written to the environment, other programs keep
theirs, and `jaxlm plan` compiles the program that trains. The values are those of MaxText (`xla_flags_library.py`) and
AXLearn (`compiler_options.py`); compilers for absent devices take them, and none has been timed on a device.

Left out, since libtpu 0.0.52 compiles the same small step without them: asynchronous collective fusion (v5e; refused
for v6e), the windowed einsum threshold (v5e), overlapped all-reduces between slices of v5e. With the sunk all-reduces
of AXLearn's table it does not compile for slices of v5e at all.
"""

import functools
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxlm.perf.chips import chip_for_device_kind

TPU_VMEM_KIB = {"v5p": 65_472, "v6e": 98_304, "7x": 65_536}
"""The share of a core's vector memory, of 16 MiB by default, that a fusion or a kernel may use: larger blocks, fewer
passes over the operands."""

GPU_SEVERAL = {"optimization_level": 19}
"""With several GPUs: O1, at which XLA also pipelines collectives over the turns of a loop, and doubles its buffers."""


def step_options(
    mesh: Mesh | AbstractMesh | None,
    exact: bool = False,
    step_timeout: float = 0.0,
    autotune_folder: Path | None = None,
) -> dict[str, Any]:
    """The options of a train step for the devices of a mesh, without those that the installed XLA does not know.

    Args:
      exact: leave out operations of a GPU that do not give the same bits each time.
      step_timeout: seconds after which a GPU's collective that waits for another process is given up; 0: never.
      autotune_folder: where a GPU's compiler keeps which kernels it chose; None: in the compilation cache.
    """
    if not isinstance(mesh, Mesh):
        return {}
    platform = mesh.devices.flat[0].platform
    if platform == "tpu":
        options = tpu_options(mesh)
    elif platform == "gpu":
        options = gpu_options(mesh, exact, step_timeout, autotune_folder)
    else:
        return {}
    return dict(_known_options(tuple(options.items()), mesh))


def tpu_options(mesh: Mesh) -> dict[str, Any]:
    """The options for the TPUs of a mesh."""
    chip = chip_for_device_kind(mesh.devices.flat[0].device_kind)
    limit = TPU_VMEM_KIB.get(chip.name) if chip else None
    return {"xla_tpu_scoped_vmem_limit_kib": str(limit)} if limit else {}


def gpu_options(mesh: Mesh, exact: bool, step_timeout: float, autotune_folder: Path | None) -> dict[str, Any]:
    """The options for the GPUs of a mesh."""
    options: dict[str, Any] = {}
    if mesh.size > 1:
        options |= GPU_SEVERAL
    if step_timeout:
        options["xla_gpu_nccl_termination_timeout_seconds"] = str(int(step_timeout))
    if exact:
        options["xla_gpu_exclude_nondeterministic_ops"] = True
        if autotune_folder is not None:
            options["xla_gpu_per_fusion_autotune_cache_dir"] = str(autotune_folder)
    return options


@functools.cache
def _known_options(options: tuple[tuple[str, Any], ...], mesh: Mesh) -> tuple[tuple[str, Any], ...]:
    """The options that the compiler takes, found by a trivial program for one device; it names one that it does not."""
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    one = Mesh(np.array([*local, mesh.devices.flat[0]][:1]), "d")
    x = jax.ShapeDtypeStruct((), np.float32, sharding=NamedSharding(one, PartitionSpec()))
    while options:
        try:
            jax.jit(lambda x: x + 1, compiler_options=dict(options)).lower(x).compile()
            break
        except jax.errors.JaxRuntimeError as error:
            if "INVALID_ARGUMENT" not in str(error):
                raise
            unknown = [name for name, _ in options if name in str(error)] or [name for name, _ in options]
            warnings.warn(f"XLA does not take {', '.join(unknown)}: the step is compiled without", stacklevel=4)
            options = tuple(option for option in options if option[0] not in unknown)
    return options
