"""`jaxlm doctor`: check this machine; print what works, what is missing, and the command that fixes it."""

import collections
import contextlib
import importlib
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from jaxlm import __version__, runtime
from jaxlm.cli.parser import COMMANDS, CommandParser
from jaxlm.cli.system_checks import (
    Check,
    check_accelerators,
    check_device_holders,
    error_line,
    installed_version,
    pod_hosts,
    within,
)
from jaxlm.data.catalog import get_command
from jaxlm.data.files import find_file
from jaxlm.errors import UserError

CORE_PACKAGES = (
    "jax", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece", "grain", "tensorflow-datasets", "rich",
    "sacrebleu", "regex",
)  # fmt: skip
"""The distributions in pyproject.toml."""

OPTIONAL_PACKAGES = {
    "sacremoses": "scores of Moses-tokenized text (Multi30k)",
    "torch": "comparisons with PyTorch; jaxlm itself does not need it",
    "tokenizers": "tokenizers of Hugging Face models (import-hf)",
    "transformers": "comparisons with Hugging Face models",
    "tensorflow": "TFDS data sets stored as tfrecord (not array_record)",
}
"""Distribution -> purpose."""

DATASETS = {
    "Multi30k English-German": "multi30k_eng_deu/train.en.gz",
    "Multi30k French": "multi30k_fra/train.fr.gz",
    "Anki English-Spanish": "spa_eng_anki/spa.txt.gz",
    "WikiText-2": "wikitext2/train.txt.gz",
    "tiny Shakespeare": "tinyshakespeare/input.txt.gz",
}
"""Data set of the experiments -> one of its files, relative to a data folder."""

BACKEND_SECONDS = 60
"""The limit for finding the devices: one host of a TPU pod alone waits for the others without end."""


def main(argv: list[str]) -> int:
    """Print the checks as a table. Returns 0 if jaxlm can run here, else 1."""
    CommandParser("doctor", COMMANDS["doctor"]).parse(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # use a GPU without taking its memory
    sections = {
        "machine": list(_check_machine()),
        "core packages": list(map(_check_core_package, CORE_PACKAGES)),
        "devices": list(_check_devices()),
        "optional": [_check_optional_package(name, purpose) for name, purpose in OPTIONAL_PACKAGES.items()],
        "data": [_check_dataset(name, file) for name, file in DATASETS.items()],
    }
    num_missing = sum(check.status == "missing" for checks in sections.values() for check in checks)
    color = {"ok": "32", "missing": "1;31", "optional": "33"}  # without rich, which may be what is missing
    for title, checks in sections.items():
        print(title)
        for check in checks:
            status = f"{check.status:10}"
            status = f"\x1b[{color[check.status]}m{status}\x1b[0m" if sys.stdout.isatty() else status
            print(f"  {check.name:25}{status}{check.detail}{check.fix and f'. To fix it: {check.fix}'}")
    print(f"{num_missing} to fix" if num_missing else "jaxlm can run here")
    return 1 if num_missing else 0


def _check_machine() -> Iterator[Check]:
    too_old = sys.version_info < (3, 11)
    python = f"{platform.python_version()}, {sys.executable}"
    yield Check("jaxlm", f"{__version__}, {Path(__file__).parents[2]}")
    yield Check("python", python, "missing" if too_old else "ok", "install 3.11 or newer" if too_old else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = "memory unknown"
    with contextlib.suppress(ValueError, OSError):  # not on every system
        page = os.sysconf("SC_PAGE_SIZE") / runtime.GIBIBYTE
        total, free = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
        memory = f"{total:,.1f} GiB memory, {free:,.1f} free"
    yield Check("system", f"{platform.system()} {platform.machine()}, {cores} cores, {memory}")
    yield Check("disk", f"{shutil.disk_usage('.').free / runtime.GIBIBYTE:,.0f} GiB free in {Path.cwd()}")


def _check_core_package(name: str) -> Check:
    """Import the package: a version number does not prove that it works."""
    version, module = installed_version(name), name.replace("orbax-", "orbax.").replace("-", "_")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # a broken package may raise anything
        if version is None:
            return Check(name, "not installed", "missing", f"pip install {name}")
        detail = f"{version} cannot be imported: {error_line(error)}"
        return Check(name, detail, "missing", f"pip install --force-reinstall {name}")
    jaxlib = f", jaxlib {installed_version('jaxlib')}" if name == "jax" else ""
    return Check(name, f"{version or 'version unknown'}{jaxlib}")


def _check_devices() -> Iterator[Check]:
    """The devices that JAX uses, computations on them, and the accelerators of this machine."""
    platforms, backend = os.environ.get("JAX_PLATFORMS"), None
    setting = f", JAX_PLATFORMS={platforms}" if platforms else ""
    try:
        import jax

        devices = within(BACKEND_SECONDS, jax.local_devices)
        backend, num_processes = jax.default_backend(), jax.process_count()
        yield Check("backend", f"{backend}{setting}")
        limits = {device.device_kind: (device.memory_stats() or {}).get("bytes_limit", 0) for device in devices}
        for kind, count in sorted(collections.Counter(device.device_kind for device in devices).items()):
            memory = f", {limits[kind] / runtime.GIBIBYTE:,.1f} GiB each" if limits[kind] else ""
            yield Check("devices", f"{count} x {kind}{memory}")
        if backend == "tpu" and pod_hosts() > 1 and num_processes not in (1, pod_hosts()):
            detail = f"{num_processes} processes met, TPU_WORKER_HOSTNAMES names {pod_hosts()} hosts"
            yield Check("pod", detail, "missing", "start it on all hosts of the pod")
        from jaxlm.cli.device_checks import check_computations

        yield from check_computations(backend)
    except ImportError:  # reported as a core package
        pass
    except TimeoutError as error:
        fix = "start it on all hosts of the pod" if pod_hosts() > 1 else "end the other programs that use the device"
        yield Check("backend", f"{error}{setting}; TPU_WORKER_HOSTNAMES names {pod_hosts()} hosts", "missing", fix)
    except Exception as error:  # an unknown platform, or a device that another process holds
        fix = "unset JAX_PLATFORMS" if platforms else "end the other programs that use the device"
        yield Check("backend", f"{error_line(error)}{setting}", "missing", fix)
    if cache := runtime.cache_folder():
        yield Check("compile cache", str(cache))
    else:
        yield Check("compile cache", "off: every start compiles again", "optional", "unset JAXLM_CACHE")
    if backend == "cpu":
        yield _check_cpu_kernels()
    yield from check_accelerators(backend)
    yield from check_device_holders(backend)


def _check_cpu_kernels() -> Check:
    from jaxlm.nn.weights import cpu_kernels

    name, width = "CPU kernels", cpu_kernels.panel_width()
    if width:
        return Check(name, f"compiled for this processor (vectors of {width // 2} floats)")
    if os.environ.get("JAXLM_NATIVE") == "0":
        return Check(name, "off", "optional", "unset JAXLM_NATIVE")
    return Check(name, "no working C compiler: decoding is slower", "optional", "apt install gcc (any C compiler)")


def _check_optional_package(name: str, purpose: str) -> Check:
    if version := installed_version(name):
        return Check(name, f"{version}, for {purpose}")
    return Check(name, f"for {purpose}", "optional", f"pip install {name}{'==2.13.0' if name == 'torch' else ''}")


def _check_dataset(name: str, file: str) -> Check:
    try:
        return Check(name, str(find_file(file).parent))
    except UserError:
        return Check(name, f"no {file}", "optional", get_command(file).strip("`") or "export JAXLM_DATA=FOLDER")
