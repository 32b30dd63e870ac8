"""`jaxlm doctor`: what this machine has, what is missing, and the command that mends it."""

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
    "tyro": "tyro",
    "rich": "rich",
    "sacrebleu": "sacrebleu",
    "tensorboardX": "tensorboardX",
}
"""Distribution -> module, as in pyproject.toml."""

OPTIONAL_PACKAGES = {
    "sacremoses": ("scores on Moses-tokenized text (Multi30k)", "pip install sacremoses"),
    "torch": ("comparisons with PyTorch; nothing in jaxlm needs it", "pip install torch==2.13.0"),
    "tokenizers": ("tokenizers of published models (import-hf)", "pip install tokenizers"),
    "transformers": ("comparisons with Hugging Face models", "pip install transformers"),
    "tensorflow": ("TFDS datasets stored as tfrecord; array_record ones are read without it", "pip install tensorflow"),
}
"""Distribution -> (what it is for, how to get it)."""

DATASETS = {
    "Multi30k English-German": "multi30k_eng_deu/train.en.gz",
    "Multi30k French": "multi30k_fra/train.fr.gz",
    "Anki English-Spanish": "spa_eng_anki/spa.txt.gz",
    "WikiText-2": "wikitext2/train.txt.gz",
    "tiny Shakespeare": "tinyshakespeare/input.txt.gz",
}
"""Data set of the experiments -> a file of it, below a data folder."""


def doctor() -> int:
    """Print the findings as a table to stdout. Returns 0 if jaxlm can run here, else 1."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # look at a GPU without taking its memory
    sections = {
        "machine": list(_check_machine()),
        "core packages": list(_check_core_packages()),
        "devices": [*_check_devices(), *check_accelerators(_jax_backend())],
        "optional": [_check_optional_package(name, use, cure) for name, (use, cure) in OPTIONAL_PACKAGES.items()],
        "data": [_check_dataset(name, file) for name, file in DATASETS.items()],
    }
    missing = sum(finding.status == "missing" for findings in sections.values() for finding in findings)
    _print_checks(sections, f"{missing} to mend" if missing else "jaxlm can run here")
    return 1 if missing else 0


def _check_machine() -> Iterator[Check]:
    old = sys.version_info < (3, 11)
    python = f"{platform.python_version()}, {sys.executable}"
    yield Check("jaxlm", f"{__version__}, {Path(__file__).parents[2]}")
    yield Check("python", python, "missing" if old else "ok", "install 3.11 or newer" if old else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("system", f"{platform.system()} {platform.machine()}, {cores} cores, {_memory_text()}")
    yield Check("disk", f"{shutil.disk_usage('.').free / 2**30:,.0f} GiB free in {Path.cwd()}")


def _memory_text() -> str:
    try:
        pages, available = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):  # not every system tells
        return "memory unknown"
    gib = os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{pages * gib:,.1f} GiB memory, {available * gib:,.1f} free"


def _check_core_packages() -> Iterator[Check]:
    """Import each package: a version number alone does not prove that it works."""
    for name, module in CORE_PACKAGES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except Exception as error:  # a broken package may raise anything
            if installed_version(name) is None:
                yield Check(name, "not installed", "missing", f"pip install {name}")
            else:
                cure = f"pip install --force-reinstall {name}"
                yield Check(name, f"{installed_version(name)} does not import: {_error_line(error)}", "missing", cure)
        else:
            also = f", jaxlib {installed_version('jaxlib')}" if name == "jax" else ""
            yield Check(name, f"{installed_version(name) or 'version unknown'}{also}")


def _jax_backend() -> str | None:
    """What JAX computes on; None where it does not start."""
    try:
        import jax

        return jax.default_backend()
    except Exception:  # told by _devices
        return None


def _check_devices() -> Iterator[Check]:
    asked = f", JAX_PLATFORMS={os.environ['JAX_PLATFORMS']}" if os.environ.get("JAX_PLATFORMS") else ""
    try:
        import jax
    except ImportError:  # a core package: reported already
        return
    try:
        devices, start = jax.local_devices(), time.perf_counter()
        jax.block_until_ready(jax.jit(lambda x: x @ x)(jax.numpy.ones((64, 64))))
        seconds = time.perf_counter() - start
    except Exception as error:  # no such platform, a device that another process holds
        cure = "unset JAX_PLATFORMS" if asked else "end the other programs that hold the device"
        yield Check("backend", f"{_error_line(error)}{asked}", "missing", cure)
        return
    yield Check("backend", f"{jax.default_backend()}{asked}; compiles and runs ({seconds:.2f} s)")
    for kind in sorted({device.device_kind for device in devices}):
        same = [device for device in devices if device.device_kind == kind]
        limit = (same[0].memory_stats() or {}).get("bytes_limit")
        yield Check("devices", f"{len(same)} x {kind}" + (f", {limit / 2**30:,.1f} GiB each" if limit else ""))
    cache = runtime.cache_folder()
    cure = "" if cache else "unset JAXLM_CACHE"
    yield Check("compile cache", str(cache or "off: every start compiles anew"), "ok" if cache else "optional", cure)
    if jax.default_backend() == "cpu":
        yield _check_cpu_kernels()


def _check_cpu_kernels() -> Check:
    from jaxlm.nn.weights import cpu_kernels

    if cpu_kernels.panel_width():
        return Check("CPU kernels", f"compiled for this processor ({cpu_kernels.panel_width() // 2} floats a vector)")
    off = os.environ.get("JAXLM_NATIVE") == "0"
    cure = "unset JAXLM_NATIVE" if off else "apt install gcc (any C compiler)"
    return Check("CPU kernels", "off" if off else "no C compiler that works: decoding takes longer", "optional", cure)


def _check_optional_package(name: str, purpose: str, fix: str) -> Check:
    found = installed_version(name)
    return Check(name, f"{found}, for {purpose}") if found else Check(name, f"for {purpose}", "optional", fix)


def _check_dataset(name: str, file: str) -> Check:
    try:
        return Check(name, str(find_file(file).parent))
    except UserError:
        return Check(name, f"no {file}", "optional", f"export JAXLM_DATA=FOLDER that holds {file.split('/')[0]}/")


def _error_line(error: Exception) -> str:
    """What happened, in a line that fits a table."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120].rstrip(": ")


def _print_checks(sections: dict[str, list[Check]], verdict: str) -> None:
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:  # the one finding that cannot be shown as a table
        for finding in (finding for findings in sections.values() for finding in findings):
            print(f"{finding.status:8}{finding.name}: {finding.detail}. {finding.fix}".rstrip(". "))
        print(verdict)
        return
    console = Console()
    if not console.is_terminal:
        console.width = 200  # into a file or a pipe: do not break paths
    table = Table(box=None, pad_edge=False)
    for column in ("", "", "found", "command that mends it"):
        table.add_column(column, overflow="fold")
    color = {"ok": "green", "missing": "bold red", "optional": "yellow"}
    for title, findings in sections.items():
        table.add_row(f"[bold]{title}[/bold]")
        for finding in findings:
            state = f"[{color[finding.status]}]{finding.status}[/]"
            table.add_row(f"  {finding.name}", state, escape(finding.detail), escape(finding.fix))
    console.print(table, verdict, sep="\n", highlight=False)
