"""Where a plan is for: `v5e:4x4`, `h100:8`, `h100:2x8` (nodes x GPUs), `here`; and who can compile for it.

TPUs need libtpu, GPUs JAX's CUDA plugin; neither needs the hardware. Without them there are figures by formula.
"""

import dataclasses
import importlib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.errors import UserError
from jaxlm.perf.chips import CHIPS, Chip, chip_by_name, chip_for_device_kind

HERE = "here"

LIBTPU_ENV = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Keeps libtpu from asking the cloud where it is, from writing logs, and from locking other processes out."""

CUDA_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")

_GPU = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth:.0f}
l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory:.0f} shared_memory_per_block_optin: 232448
cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: {cuda} }}
device_description_str: "{name}" """
"""What XLA asks of a GPU of Hopper's generation."""

_HOPPER = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}


@dataclass(frozen=True)
class Target:
    """Devices to plan for.

    Attributes:
      name: as the user wrote it.
      chip: what they are; None: no chip of the table (a CPU).
      count: devices of JAX.
      devices: that programs can be compiled for; None: nothing here can compile for them.
      compiler: what compiles, or why nothing does.
      slices: parts between which the network is slow.
    """

    name: str
    chip: Chip | None
    num_devices: int
    devices: Sequence[Any] | None
    compiler: str
    num_slices: int = 1

    @property
    def num_chips(self) -> int:
        return self.num_devices // (self.chip.cores if self.chip else 1)


def set_compiler_flags(name: str) -> None:
    """Before JAX is imported: a plan for elsewhere leaves the devices of this machine alone."""
    os.environ.update({key: value for key, value in LIBTPU_ENV.items() if key not in os.environ})
    if name != HERE:
        os.environ["JAX_PLATFORMS"] = "cpu"


def find_target(name: str, num_slices: int = 1) -> Target:
    """The devices that a topology names. Raises UserError where there is no such chip or no such shape."""
    if name == HERE:
        return _local_target()
    kind, colon, shape = name.partition(":")
    chip = chip_by_name(kind)
    if chip is None or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise UserError(
            f"--topology {name}: expected `{HERE}`, or a chip ({', '.join(one.name for one in CHIPS)}) and the shape "
            "of the slice or the nodes, as in v5e:4x4, v5p:2x2x4, h100:8 or h100:2x8"
        )
    sizes = [int(size) for size in shape.split("x")]
    return _tpu_target(name, chip, sizes, num_slices) if chip.is_tpu else _gpu_target(name, chip, sizes, num_slices)


def _local_target() -> Target:
    import jax

    devices, kind = jax.devices(), jax.devices()[0].device_kind
    chip, limit = chip_for_device_kind(kind), (devices[0].memory_stats() or {}).get("bytes_limit")
    if chip is not None and limit:  # an A100 has 40 or 80 GB, and a user may have changed JAX's share
        chip = dataclasses.replace(chip, memory=limit * chip.cores, usable_fraction=1.0)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    return Target(HERE, chip, len(devices), devices, f"jax {jax.__version__} for {kind}", slices)


def _tpu_target(name: str, chip: Chip, sizes: list[int], num_slices: int) -> Target:
    from jax.experimental import topologies

    dimensions = 2 if chip.name in ("v5e", "v6e") else 3
    if len(sizes) != dimensions:
        raise UserError(f"--topology {name}: a slice of {chip.name} has {dimensions} dimensions, found {len(sizes)}")
    count = math.prod(sizes) * chip.cores * num_slices
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        return Target(name, chip, count, None, "by formula: pip install libtpu to compile for TPUs", num_slices)
    several: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    several |= {"chip_config_name": "megacore"} if chip.name == "v4" else {}  # as its runtime has it: one device a chip
    asked = f"{'tpu7x' if chip.name == '7x' else chip.name}:{'x'.join(map(str, sizes))}"
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=asked, **several)
    except Exception as error:  # whatever libtpu says of a shape
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"--topology {name}: libtpu knows no such slice ({reason}): hosts are 2x2 or 2x2x1") from error
    return Target(name, chip, len(topology.devices), topology.devices, f"libtpu for {chip.name}", num_slices)


def _gpu_target(name: str, chip: Chip, sizes: list[int], num_slices: int) -> Target:
    nodes, each = (1, *sizes) if len(sizes) == 1 else (sizes[0], math.prod(sizes[1:]))
    nodes *= num_slices
    plugin = next((one for one in CUDA_PLUGINS if importlib.util.find_spec("jax_plugins") and _is_installed(one)), None)
    if plugin is None or chip.name not in _HOPPER:
        why = "compiled are h100 and h200" if plugin else "pip install jax-cuda12-plugin jax-cuda12-pjrt to compile"
        return Target(name, chip, nodes * each, None, f"by formula: {why}", nodes)
    from jax.experimental import topologies

    text = _GPU.format(
        bandwidth=chip.memory_bandwidth, memory=chip.memory, cuda=plugin[-2:], name=_HOPPER[chip.name]
    )  # fmt: skip
    importlib.import_module(plugin)
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name=chip.name, target_config=text, topology=f"1x{nodes}x{each}"
    )
    return Target(name, chip, nodes * each, topology.devices, f"{plugin.rpartition('_')[2]} plugin", nodes)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
