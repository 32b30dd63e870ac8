"""Differences between programs for a CPU, a GPU and a TPU: `CHOICES`, with the reasons in `PlatformChoices`.

None of them changes what is computed but for rounding; docs/planning.md has them as a table, with their switches.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from jaxlm.distributed.mesh_axes import split_pairs
from jaxlm.errors import UserError
from jaxlm.perf.chips import Chip, chip_for_device_kind


@dataclass(frozen=True)
class PlatformChoices:
    """The choices of one platform.

    Attributes:
      dtype: of activations and products of a model whose dtype is "auto". Accelerators have units for bfloat16 and
        attention kernels that ask for it, and it halves the traffic; CPUs compute it slowly.
      unrolled_depth: a stack of at most this many layers is unrolled though the model says `scan`. A scan writes all
        that the backward pass wants into stacks; unrolled, XLA computes most of it again inside its fusions, with half
        the launches. It compiles longer, hence a limit; 0: as the model says.
      kept_share: unrolled activations are kept, though the model says `remat`, if they are estimated to take at most
        this share of the device's memory.
      scan_remat: the recomputation of a stack that stays scanned and has none. "dots" keeps the products and computes
        what lies between them, activations and norms, again, instead of stacking it.
      activation_remat: an activation function that is not gated keeps its input alone for the backward pass: a GELU's
        derivative otherwise takes as much memory again, at the same traffic. Of gated ones it costs traffic.
      fused_gates: the two maps into a gated feed-forward layer are one product. On a GPU it is not faster, and the
        backward pass would write and read their gradients once more to join them.
      chunk_logits: logits of a chunk of the loss. On a CPU they fit a core's share of the cache. Elsewhere the output
        table and its gradient, which each chunk moves, cost more: as many as fit a thirtieth of the memory.
      narrow_logits: logits of bfloat16 models are rounded to bfloat16 as they leave the product, whose sums, like those
        of the softmax, are float32. It halves what a chunk of logits moves, for 8 bits of each: an option.
      static_loss: the loss takes all positions, in a number of chunks that the compiler knows. A loop that ends after
        the real tokens saves the padding, but before each of its turns a GPU's host waits for the device.
      attention_kernel: attention by the platform's kernel where there is one (`jaxlm.nn.attention.kernels`): the scores
        of all pairs of positions then never exist in memory. The blocks of the TPU's: `jaxlm.nn.attention.splash`.
    """

    dtype: str = "float32"
    unrolled_depth: int = 0
    kept_share: float = 0.0
    scan_remat: str = "none"
    activation_remat: bool = False
    fused_gates: bool = True
    chunk_logits: int = 2**21
    static_loss: bool = False
    attention_kernel: bool = True
    narrow_logits: bool = False


MIN_WIDE_CHUNK, MAX_WIDE_CHUNK = 2**27, 2**29

CHOICES = {
    "cpu": PlatformChoices(),
    "gpu": PlatformChoices("bfloat16", 24, 0.4, "dots", True, False, MIN_WIDE_CHUNK, True),
    "tpu": PlatformChoices("bfloat16", chunk_logits=MIN_WIDE_CHUNK, static_loss=True),
}
"""Platform, as JAX names it, -> its choices; an unknown one is treated like a CPU."""


_target: ContextVar[tuple[Chip | None, Mapping[str, Any]]] = ContextVar("platform_target", default=(None, {}))
"""The chip that is traced for (None: this machine's) and the choices that are replaced."""


@contextmanager
def tracing_for(chip: Chip | None = None, choices: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Trace what is in this block with the choices for a chip (None: for the devices of the arrays), some replaced."""
    outer_chip, outer_choices = _target.get()
    token = _target.set((chip or outer_chip, {**outer_choices, **(choices or {})}))
    try:
        yield
    finally:
        _target.reset(token)


def choices_for(x: Any = None) -> PlatformChoices:
    """The choices for the program in which x is traced; without x, for the devices of this process."""
    row = CHOICES.get(_platform(x), CHOICES["cpu"])
    if row.chunk_logits >= MIN_WIDE_CHUNK and (memory := device_memory(x)):
        logits = 2 ** int(math.log2(memory / 30 / 4))
        row = replace(row, chunk_logits=min(max(logits, MIN_WIDE_CHUNK), MAX_WIDE_CHUNK))
    return replace(row, **_target.get()[1])


def device_memory(x: Any = None) -> float:
    """Bytes of a device of the program in which x is traced; 0 if its kind is unknown (a CPU)."""
    import jax

    from jaxlm.distributed.sharding import device_kind_of

    chip = _target.get()[0] or chip_for_device_kind(jax.devices()[0].device_kind if x is None else device_kind_of(x))
    return chip.memory / chip.cores if chip else 0.0


def resolve_dtype(dtype: str) -> str:
    """The dtype of a model: "auto" is that of the platform."""
    return CHOICES.get(_platform(), CHOICES["cpu"]).dtype if dtype == "auto" else dtype


def _platform(x: Any = None) -> str:
    if chip := _target.get()[0]:
        return "tpu" if chip.is_tpu else "gpu"
    import jax

    from jaxlm.distributed.sharding import platform_of

    return jax.default_backend() if x is None else platform_of(x)


_SWITCH: Any = (lambda value: value == "1", "[01]", "0 or 1")

_VALUES: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "unrolled_depth": (int, r"\d{1,9}", "a number of layers"),
    "kept_share": (float, r"0|1|0?\.\d{1,9}", "a share between 0 and 1"),
    "scan_remat": (str, "none|dots|full", "none, dots or full"),
    "activation_remat": _SWITCH,
    "fused_gates": _SWITCH,
    "chunk_logits": (int, r"[1-9]\d{0,11}", "a number of logits"),
    "static_loss": _SWITCH,
    "attention_kernel": _SWITCH,
    "narrow_logits": _SWITCH,
}
"""The choices that `--choices` can replace: how a value is read, its form, and what is expected."""


def parse_choices(text: str) -> dict[str, Any]:
    """`unrolled_depth=0,static_loss=0` -> {"unrolled_depth": 0, "static_loss": False}. Raises UserError."""
    given: dict[str, Any] = {}
    for name, value in split_pairs("--choices", text, "NAME=VALUE with one", _VALUES).items():
        convert, pattern, expected = _VALUES[name]
        if not re.fullmatch(pattern, value):
            raise UserError(f"--choices {text}: found the value {value!r:.40} of {name}, expected {expected}")
        given[name] = convert(value)
    return given
