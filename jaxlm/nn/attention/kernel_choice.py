"""The faster attention of this machine's GPU, cuDNN's kernel or plain products, timed once and kept in a file.

cuDNN is the faster one on Hopper and on some GPUs not, so that a measurement decides. `jaxlm doctor` makes it; the file
lies with the compiled programs (`jaxlm.runtime.cache_folder`) and names the device and the versions it is valid for.
"""

import functools
import json
from collections.abc import Mapping

from jaxlm import runtime

TIMES_FILE = "attention_kernels.json"


def remembered_kernel(device_kind: str) -> str | None:
    """Return the attention that was the fastest on this kind of device, "cudnn" or "plain"; None if none was timed.

    Read once in a process: tracing calls it for every layer.
    """
    times = _stored_times().get(_key(device_kind))
    return min(times, key=times.__getitem__) if times else None


def remember_times(device_kind: str, milliseconds: Mapping[str, float]) -> None:
    """Store the measured milliseconds of "cudnn" and "plain" for this kind of device and these versions of JAX."""
    if (folder := runtime.cache_folder()) is not None:
        stored = _stored_times() | {_key(device_kind): dict(milliseconds)}
        runtime.write_checked(folder / TIMES_FILE, json.dumps(stored).encode())
        _stored_times.cache_clear()


@functools.cache
def _stored_times() -> dict[str, dict[str, float]]:
    folder = runtime.cache_folder()
    content = None if folder is None else runtime.read_checked(folder / TIMES_FILE)
    return json.loads(content) if content else {}


def _key(device_kind: str) -> str:
    versions = runtime.library_versions()
    return f"{device_kind}, jax {versions['jax']}, jaxlib {versions['jaxlib']}"
