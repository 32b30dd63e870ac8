"""Dense peak FLOP/s, memory and link bandwidths of accelerator chips, for `jaxlm plan` and for MFU.

TPUs: the tables at docs.cloud.google.com/tpu/docs; the page tpu7x for v5p, v6e and 7x, the page v5e for v5e, and the
page v4 for v4, which omits the links (six of 400 Gbit/s each way) and the network (assumed to be that of v5p). Memory
is what libtpu 0.0.42 grants a program: 15.75 of the 16 GiB of a v5e. A product of float32 is one of bfloat16 on a TPU,
unless a higher precision is requested.

GPUs: NVIDIA's data sheets, of the boards with SXM sockets if there are several, without the factor 2 for sparsity;
memory as the driver counts it, of which jaxlm takes 92 % (XLA_CLIENT_MEM_FRACTION). The network is one
adapter per GPU, as in NVIDIA's own nodes (DGX). An L4 has only PCIe 4.0; 100 Gbit/s are assumed.

Bandwidths of links that are listed as bidirectional are halved: one direction counts. A device of JAX is one chip,
except on TPU 7x, where it is one of two cores with a memory of its own.
"""

import functools
import re
from dataclasses import dataclass

from jaxlm.runtime import GIBIBYTE, GPU_MEMORY_FRACTION


@dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      name: as in `jaxlm plan --topology`.
      device_kind_pattern: regular expression that finds it in JAX's `device_kind`.
      bf16_flops, f32_flops: peak FLOP/s of matrix products of that dtype (f32: at JAX's default precision).
      memory: bytes per chip.
      memory_bandwidth: bytes/s between a chip and its memory.
      link_bandwidth: bytes/s from a chip to its neighbors (ICI, NVLink, PCIe), in one direction.
      network_bandwidth: bytes/s per chip between slices or nodes.
      cores: JAX devices per chip.
      usable_fraction: share of the memory that a program may take.
    """

    name: str
    device_kind_pattern: str
    bf16_flops: float
    f32_flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    cores: int = 1
    usable_fraction: float = 1.0

    @property
    def is_tpu(self) -> bool:
        return self.device_kind_pattern.startswith("TPU")

    def peak_flops(self, dtype: str) -> float:
        """FLOP/s of one JAX device."""
        return (self.bf16_flops if dtype == "bfloat16" else self.f32_flops) / self.cores


_gpu = functools.partial(Chip, usable_fraction=GPU_MEMORY_FRACTION)

CHIPS = (
    #    name   device kind            bf16     f32      memory            memory/s  link/s network/s cores
    Chip("v4", r"TPU v4$", 275e12, 275e12, 30.75 * GIBIBYTE, 1.2e12, 300e9, 6.25e9),
    Chip("v5e", r"TPU v5 ?(lite|e)", 197e12, 197e12, 15.75 * GIBIBYTE, 0.819e12, 200e9, 3.125e9),
    Chip("v5p", r"TPU v5(p|$)", 459e12, 459e12, 95.74 * GIBIBYTE, 2.765e12, 600e9, 6.25e9),
    Chip("v6e", r"TPU v6 ?(lite|e)", 918e12, 918e12, 31.25 * GIBIBYTE, 1.638e12, 400e9, 12.5e9),
    Chip("7x", r"TPU ?7x", 2307e12, 2307e12, 189.5 * GIBIBYTE, 7.38e12, 600e9, 12.5e9, cores=2),
    #    name    device kind             bf16     f32 (TF32)  memory  memory/s  link/s  network/s
    _gpu("a100", r"A100", 312e12, 156e12, 85.1e9, 2.039e12, 300e9, 25e9),
    _gpu("h100", r"\bH100 80GB HBM3$", 989e12, 494e12, 84.9e9, 3.35e12, 450e9, 50e9),
    _gpu("h200", r"\bH200$", 989e12, 494e12, 150.1e9, 4.8e12, 450e9, 50e9),
    _gpu("b200", r"\bB200$", 2250e12, 1125e12, 191e9, 8e12, 900e9, 50e9),
    _gpu("l4", r"L4$", 121e12, 60e12, 23.7e9, 0.3e12, 32e9, 12.5e9),
)
"""Other boards of the same name (PCIe, NVL, superchips, MIG slices) have other peaks and do not match."""


def chip_for_device_kind(device_kind: str) -> Chip | None:
    """The chip that matches a `device_kind` of JAX; None if the table lacks it (every CPU)."""
    matching = (chip for chip in CHIPS if re.search(chip.device_kind_pattern, device_kind))
    return None if "MIG" in device_kind else next(matching, None)


def chip_by_name(name: str) -> Chip | None:
    """The chip of that name; None if there is none."""
    return next((chip for chip in CHIPS if chip.name == name), None)


def format_gib(size: float) -> str:
    """Bytes in GiB: `1.25`; less than a tenth with two digits."""
    return f"{size / GIBIBYTE:,{'.2f' if size > GIBIBYTE / 10 else '.2g'}}"
