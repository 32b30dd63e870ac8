"""`jaxlm doctor`: check this machine; print what works, what is missing, and the command that fixes it."""

import importlib
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from jaxlm import __version__, runtime
from jaxlm.cli.parser import COMMANDS, CommandParser
from jaxlm.cli.system_checks import Check, check_accelerators, installed_version
from jaxlm.data.files import find_file
from jaxlm.errors import UserError

CORE_PACKAGES = {
    "jax": "jax",
    "flax": "flax",
    "optax": "optax",
    "orbax-checkpoint": "orbax.checkpoint",
    "numpy": "numpy",
    "sentencepiece": "sentencepiece",
    "grain": "grain",
    "tensorflow-datasets": "tensorflow_datasets",
    "rich": "rich",
    "sacrebleu": "sacrebleu",
    "tensorboardX": "tensorboardX",
}
"""Distribution -> module, as in pyproject.toml."""

OPTIONAL_PACKAGES = {
    "sacremoses": ("scores of Moses-tokenized text (Multi30k)", "pip install sacremoses"),
    "torch": ("comparisons with PyTorch; jaxlm itself does not need it", "pip install torch==2.13.0"),
    "tokenizers": ("tokenizers of Hugging Face models (import-hf)", "pip install tokenizers"),
    "transformers": ("comparisons with Hugging Face models", "pip install transformers"),
    "tensorflow": ("TFDS data sets stored as tfrecord (not array_record)", "pip install tensorflow"),
}
"""Distribution -> (purpose, command that installs it)."""

DATASETS = {
    "Multi30k English-German": "multi30k_eng_deu/train.en.gz",
    "Multi30k French": "multi30k_fra/train.fr.gz",
    "Anki English-Spanish": "spa_eng_anki/spa.txt.gz",
    "WikiText-2": "wikitext2/train.txt.gz",
    "tiny Shakespeare": "tinyshakespeare/input.txt.gz",
}
"""Data set of the experiments -> one of its files, relative to a data folder."""


def main(argv: list[str]) -> int:
    """Print the checks as a table. Returns 0 if jaxlm can run here, else 1."""
    CommandParser("doctor", COMMANDS["doctor"]).parse(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # use a GPU without taking its memory
    sections = {
        "machine": list(_check_machine()),
        "core packages": [_check_core_package(name, module) for name, module in CORE_PACKAGES.items()],
        "devices": [*_check_devices(), *check_accelerators(_jax_backend())],
        "optional": [_check_optional_package(name, use, fix) for name, (use, fix) in OPTIONAL_PACKAGES.items()],
        "data": [_check_dataset(name, file) for name, file in DATASETS.items()],
    }
    num_missing = sum(check.status == "missing" for checks in sections.values() for check in checks)
    _print_checks(sections, f"{num_missing} to fix" if num_missing else "jaxlm can run here")
    return 1 if num_missing else 0


def _check_machine() -> Iterator[Check]:
    too_old = sys.version_info < (3, 11)
    python = f"{platform.python_version()}, {sys.executable}"
    yield Check("jaxlm", f"{__version__}, {Path(__file__).parents[2]}")
    yield Check("python", python, "missing" if too_old else "ok", "install 3.11 or newer" if too_old else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("system", f"{platform.system()} {platform.machine()}, {cores} cores, {_memory_text()}")
    yield Check("disk", f"{shutil.disk_usage('.').free / runtime.GIBIBYTE:,.0f} GiB free in {Path.cwd()}")


def _memory_text() -> str:
    try:
        pages, available = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):  # not on every system
        return "memory unknown"
    page_gib = os.sysconf("SC_PAGE_SIZE") / runtime.GIBIBYTE
    return f"{pages * page_gib:,.1f} GiB memory, {available * page_gib:,.1f} free"


def _check_core_package(name: str, module: str) -> Check:
    """Import the package: a version number does not prove that it works."""
    version = installed_version(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # a broken package may raise anything
        if version is None:
            return Check(name, "not installed", "missing", f"pip install {name}")
        detail = f"{version} cannot be imported: {_error_line(error)}"
        return Check(name, detail, "missing", f"pip install --force-reinstall {name}")
    jaxlib = f", jaxlib {installed_version('jaxlib')}" if name == "jax" else ""
    return Check(name, f"{version or 'version unknown'}{jaxlib}")


def _jax_backend() -> str | None:
    """JAX's default backend; None if JAX does not start, which `_check_devices` reports."""
    try:
        import jax

        return jax.default_backend()
    except Exception:
        return None


def _check_devices() -> Iterator[Check]:
    platforms = os.environ.get("JAX_PLATFORMS")
    setting = f", JAX_PLATFORMS={platforms}" if platforms else ""
    try:
        import jax
    except ImportError:  # reported as a core package
        return
    try:
        devices, start = jax.local_devices(), time.perf_counter()
        jax.block_until_ready(jax.jit(lambda x: x @ x)(jax.numpy.ones((64, 64))))
        seconds = time.perf_counter() - start
    except Exception as error:  # an unknown platform, or a device that another process holds
        fix = "unset JAX_PLATFORMS" if platforms else "end the other programs that use the device"
        yield Check("backend", f"{_error_line(error)}{setting}", "missing", fix)
        return
    yield Check("backend", f"{jax.default_backend()}{setting}; compiles and runs ({seconds:.2f} s)")
    for kind in sorted({device.device_kind for device in devices}):
        same = [device for device in devices if device.device_kind == kind]
        limit = (same[0].memory_stats() or {}).get("bytes_limit")
        memory = f", {limit / runtime.GIBIBYTE:,.1f} GiB each" if limit else ""
        yield Check("devices", f"{len(same)} x {kind}{memory}")
    if cache := runtime.cache_folder():
        yield Check("compile cache", str(cache))
    else:
        yield Check("compile cache", "off: every start compiles again", "optional", "unset JAXLM_CACHE")
    if jax.default_backend() == "cpu":
        yield _check_cpu_kernels()


def _check_cpu_kernels() -> Check:
    from jaxlm.nn.weights import cpu_kernels

    name, width = "CPU kernels", cpu_kernels.panel_width()
    if width:
        return Check(name, f"compiled for this processor (vectors of {width // 2} floats)")
    if os.environ.get("JAXLM_NATIVE") == "0":
        return Check(name, "off", "optional", "unset JAXLM_NATIVE")
    return Check(name, "no working C compiler: decoding is slower", "optional", "apt install gcc (any C compiler)")


def _check_optional_package(name: str, purpose: str, fix: str) -> Check:
    version = installed_version(name)
    return Check(name, f"{version}, for {purpose}") if version else Check(name, f"for {purpose}", "optional", fix)


def _check_dataset(name: str, file: str) -> Check:
    try:
        return Check(name, str(find_file(file).parent))
    except UserError:
        return Check(name, f"no {file}", "optional", f"export JAXLM_DATA=FOLDER that holds {file.split('/')[0]}/")


def _error_line(error: Exception) -> str:
    """The error in one line that fits a table."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120].rstrip(": ")


def _print_checks(sections: dict[str, list[Check]], verdict: str) -> None:
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:  # without rich: plain lines
        for check in (check for checks in sections.values() for check in checks):
            print(f"{check.status:8}{check.name}: {check.detail}. {check.fix}".rstrip(". "))
        print(verdict)
        return
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe: do not wrap paths
    table = Table(box=None, pad_edge=False)
    for column in ("", "", "state", "command that fixes it"):
        table.add_column(column, overflow="fold")
    color = {"ok": "green", "missing": "bold red", "optional": "yellow"}
    for title, checks in sections.items():
        table.add_row(f"[bold]{title}[/bold]")
        for check in checks:
            status = f"[{color[check.status]}]{check.status}[/]"
            table.add_row(f"  {check.name}", status, escape(check.detail), escape(check.fix))
    console.print(table, verdict, sep="\n", highlight=False)
