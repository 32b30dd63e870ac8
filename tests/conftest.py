"""What every test runs under: the CPU as eight devices, no silent rank promotion, compilations kept from run to run.

JAX has not been imported yet when this file is read; what it must know before that is set here. `pytest -m gpu` and
`pytest -m tpu` leave the choice of the platform to JAX.
"""

import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

DEVICES = 8
COMPILE_QUICKLY = "--xla_cpu_parallel_codegen_split_count=1"
OLD_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
"""Half of the time to compile; later versions of jaxlib have no such flag, and end a process that names it."""


def _wants_accelerator(config: pytest.Config) -> bool:
    """True for `-m gpu`, `-m "slow and tpu"`; False for `-m "not gpu"`."""
    return re.search(r"(?<!not )\b(gpu|tpu)\b", config.getoption("markexpr") or "") is not None


def pytest_configure(config: pytest.Config) -> None:
    """Set JAX up before the first test module imports it. The environment is for the processes that tests start too."""
    if not _wants_accelerator(config):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        # What runs for microseconds is compiled in little more than half the time. The processes that tests start too.
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        flags = [COMPILE_QUICKLY, *([OLD_EMITTERS] if version("jaxlib").startswith("0.10.") else [])]
        os.environ.setdefault("XLA_FLAGS", " ".join(flags))
    if hasattr(config, "cache"):  # absent under `-p no:cacheprovider`
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
        os.environ["XDG_STATE_HOME"] = str(config.cache.mkdir("state"))  # files trained with are noted there
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    import jax

    jax.config.update("jax_num_cpu_devices", DEVICES)  # not inherited: a process that a test starts sees one device
    jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their argument: a clock's time in the content would give every worker other names."""
    return argname if isinstance(val, bytes | bytearray) else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs an accelerator that is not there."""
    for platform in ("gpu", "tpu"):
        if item.get_closest_marker(platform) is not None:
            import jax

            if jax.default_backend() != platform:
                pytest.skip(f"needs a {platform.upper()}; JAX found {jax.default_backend()}")


@pytest.fixture(autouse=True, scope="module")
def compiled_functions() -> Iterator[None]:
    """Drop what a module compiled and return its memory: kept to the end, all of it exceeds 4 GB a worker."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc
        libc.malloc_trim(0)


@pytest.fixture
def data_root() -> Path:
    """The folder that holds the real text data; a test that asks for it is skipped where there is none."""
    from jaxlm.data.files import find_file
    from jaxlm.errors import UserError

    try:
        return find_file("multi30k_eng_deu/train.en.gz").parent.parent
    except UserError as error:
        pytest.skip(f"no text data: {error}")
