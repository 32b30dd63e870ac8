"""The target of a plan: `v5e:4x4`, `h100:8`, `h100:2x8` (nodes x GPUs) or `here`; and the compiler for it.

Programs for TPUs need libtpu, for GPUs JAX's CUDA plugin; neither needs the hardware. Without them a plan is analytic.
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
"""Keeps libtpu from querying the cloud's metadata server, from writing logs, and from locking the device."""

CUDA_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")

_GPU = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth:.0f}
l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory:.0f} shared_memory_per_block_optin: 232448
cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: {cuda} }}
device_description_str: "{name}" """
"""The properties that XLA needs of a GPU of the Hopper generation."""

_HOPPER = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}


@dataclass(frozen=True)
class Target:
    """Devices to plan for.

    Attributes:
      chip: None for a chip that the table lacks (a CPU).
      devices: the devices to compile for; None if nothing here can compile for them.
      compiler: the compiler, or the reason why there is none.
      num_slices: parts between which the network is slow.
    """

    name: str
    chip: Chip | None
    num_devices: int
    devices: Sequence[Any] | None
    compiler: str
    num_slices: int = 1


def set_compiler_flags(name: str) -> None:
    """Keep a plan for other hardware off the devices of this machine. Call before JAX is imported."""
    os.environ.update({key: value for key, value in LIBTPU_ENV.items() if key not in os.environ})
    if name != HERE:
        os.environ["JAX_PLATFORMS"] = "cpu"


def find_target(name: str, num_slices: int = 1) -> Target:
    """The devices of a topology. Raises UserError if the chip or the shape does not exist."""
    if name == HERE:
        return _local_target()
    kind, colon, shape = name.partition(":")
    chip = chip_by_name(kind)
    if chip is None or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise UserError(
            f"--topology {name}: expected `{HERE}`, or a chip ({', '.join(chip.name for chip in CHIPS)}) and a shape "
            "of a slice or of nodes, such as v5e:4x4, v5p:2x2x4, h100:8 or h100:2x8"
        )
    sizes = [int(size) for size in shape.split("x")]
    return _tpu_target(name, chip, sizes, num_slices) if chip.is_tpu else _gpu_target(name, chip, sizes, num_slices)


def _local_target() -> Target:
    import jax

    devices, kind = jax.devices(), jax.devices()[0].device_kind
    chip, limit = chip_for_device_kind(kind), (devices[0].memory_stats() or {}).get("bytes_limit")
    if chip is not None and limit:  # an A100 has 40 or 80 GB, and the user may have changed JAX's share
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
        return Target(name, chip, count, None, "pip install libtpu to compile for TPUs", num_slices)
    arguments: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if chip.name == "v4":
        arguments["chip_config_name"] = "megacore"  # one device per chip, as its runtime has it
    shape = f"{'tpu7x' if chip.name == '7x' else chip.name}:{'x'.join(map(str, sizes))}"
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=shape, **arguments)
    except Exception as error:  # libtpu raises errors of several types
        reason = str(error).strip().partition("\n")[0]
        problem = f"--topology {name}: libtpu has no such slice ({reason})"
        raise UserError(f"{problem}; a host has 2x2 or 2x2x1 chips") from error
    return Target(name, chip, len(topology.devices), topology.devices, f"libtpu for {chip.name}", num_slices)


def _gpu_target(name: str, chip: Chip, sizes: list[int], num_slices: int) -> Target:
    nodes = num_slices * (sizes[0] if len(sizes) > 1 else 1)
    gpus_per_node = math.prod(sizes[1:] or sizes)
    has_plugins = importlib.util.find_spec("jax_plugins") is not None
    plugin = next((name for name in CUDA_PLUGINS if has_plugins and importlib.util.find_spec(name)), None)
    if plugin is None or chip.name not in _HOPPER:
        install = "pip install jax-cuda12-plugin jax-cuda12-pjrt to compile for GPUs"
        reason = "only h100 and h200 can be compiled for" if plugin else install
        return Target(name, chip, nodes * gpus_per_node, None, reason, nodes)
    from jax.experimental import topologies

    from jaxlm.nn.attention.cudnn import assume_cudnn

    figures = {"bandwidth": chip.memory_bandwidth, "memory": chip.memory, "name": _HOPPER[chip.name]}
    text = _GPU.format(cuda=plugin[-2:], **figures)
    importlib.import_module(plugin)
    assume_cudnn()
    shape = {"topology_name": chip.name, "target_config": text, "topology": f"1x{nodes}x{gpus_per_node}"}
    topology = topologies.get_topology_desc(platform="cuda", **shape)
    return Target(name, chip, nodes * gpus_per_node, topology.devices, f"{plugin.rpartition('_')[2]} plugin", nodes)
