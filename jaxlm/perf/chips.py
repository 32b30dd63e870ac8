"""What chips can do at best: one table of dense peaks, memory and links, for plans and for MFU.

TPUs: the tables at docs.cloud.google.com/tpu/docs, of page tpu7x for v5p, v6e and 7x, of v5e for v5e, and of v4 for v4,
which leaves out links (six of 400 Gbit/s each way) and network (that of v5p is assumed). Memory is what libtpu
0.0.42 says that a program may have: 15.75 of the 16 GiB of a v5e.

GPUs: NVIDIA's data sheets, of the boards with SXM sockets where there are several, without the doubling by sparsity;
memory as the driver counts it. The network is one adapter a GPU, as in NVIDIA's own nodes (DGX); an L4 has PCIe 4.0
alone, and 100 Gbit/s are assumed.

Links that are given as "bidirectional" are halved: what counts is one direction. A device of JAX is a chip, but half a
chip of TPU 7x, whose two cores have a memory each.
"""

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: as `jaxlm plan --topology` writes it.
      kind: expression that finds it in JAX's `device_kind`.
      bf16, f32: peak FLOP/s of matrix products of that type (f32: as JAX computes them by default).
      memory: bytes of a chip. memory_bandwidth: bytes/s.
      link: bytes/s that leave a chip, in one direction, to its neighbours (ICI, NVLink, PCIe).
      network: bytes/s a chip between slices or nodes.
      cores: devices of JAX on one chip.
      usable: share of the memory that a program may take.
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
        """FLOP/s of one device of JAX."""
        return (self.bf16_flops if dtype == "bfloat16" else self.f32_flops) / self.cores


def _tpu_chip(
    name: str, kind: str, bf16: float, memory: float, bandwidth: float, link: float, network: float, cores: int = 1
) -> Chip:  # fmt: skip
    # A product of float32 is one of bfloat16 on a TPU, unless a higher precision is asked for.
    return Chip(name, f"TPU {kind}", bf16, bf16, memory * GIB, bandwidth, link, network, cores)


def _gpu_chip(
    name: str, kind: str, bf16: float, f32: float, memory: float, bandwidth: float, link: float, network: float
) -> Chip:  # fmt: skip
    # JAX takes three quarters of the memory (XLA_PYTHON_CLIENT_MEM_FRACTION).
    return Chip(name, kind, bf16, f32, memory, bandwidth, link, network, usable_fraction=0.75)


CHIPS = (
    #     name   kind          bf16      GiB    memory    link     network   cores
    _tpu_chip("v4", r"v4$", 275e12, 30.75, 1.2e12, 300e9, 6.25e9),
    _tpu_chip("v5e", r"v5 ?(lite|e)", 197e12, 15.75, 0.819e12, 200e9, 3.125e9),
    _tpu_chip("v5p", r"v5(p|$)", 459e12, 95.74, 2.765e12, 600e9, 6.25e9),
    _tpu_chip("v6e", r"v6 ?(lite|e)", 918e12, 31.25, 1.638e12, 400e9, 12.5e9),
    _tpu_chip("7x", r"?7x", 2307e12, 189.5, 7.38e12, 600e9, 12.5e9, 2),
    #     name    kind              bf16   f32 (TF32)  bytes   memory    link    network
    _gpu_chip("a100", r"A100", 312e12, 156e12, 85.1e9, 2.039e12, 300e9, 25e9),
    _gpu_chip("h100", r"\bH100 80GB HBM3$", 989e12, 494e12, 84.9e9, 3.35e12, 450e9, 50e9),
    _gpu_chip("h200", r"\bH200$", 989e12, 494e12, 150.1e9, 4.8e12, 450e9, 50e9),
    _gpu_chip("b200", r"\bB200$", 2250e12, 1125e12, 191e9, 8e12, 900e9, 50e9),
    _gpu_chip("l4", r"L4$", 121e12, 60e12, 23.7e9, 0.3e12, 32e9, 12.5e9),
)
"""Other boards of a name (PCIe, NVL, a superchip, a MIG slice) have other peaks and are not taken for these."""


def chip_for_device_kind(device_kind: str) -> Chip | None:
    """The chip that a `device_kind` of JAX names; None where the table has none (every CPU)."""
    return next(
        (chip for chip in CHIPS if re.search(chip.device_kind_pattern, device_kind) and "MIG" not in device_kind), None
    )


def chip_by_name(name: str) -> Chip | None:
    """The chip of that name; None where there is none."""
    return next((chip for chip in CHIPS if chip.name == name), None)
