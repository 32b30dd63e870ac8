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

import jaxlm
from jaxlm import runtime
from jaxlm.cli.accelerators import accelerators
from jaxlm.cli.finding import Finding, version
from jaxlm.data.text import find
from jaxlm.errors import UserError

CORE = {
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

OPTIONAL = {
    "sacremoses": ("scores on Moses-tokenized text (Multi30k)", "pip install sacremoses"),
    "torch": ("comparisons with PyTorch; nothing in jaxlm needs it", "pip install torch==2.13.0"),
    "tokenizers": ("tokenizers of published models (import-hf)", "pip install tokenizers"),
    "transformers": ("comparisons with Hugging Face models", "pip install transformers"),
    "tensorflow": ("TFDS datasets stored as tfrecord; array_record ones are read without it", "pip install tensorflow"),
}
"""Distribution -> (what it is for, how to get it)."""

DATA = {
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
        "machine": list(_machine()),
        "core packages": list(_core()),
        "devices": [*_devices(), *accelerators(_backend())],
        "optional": [_optional(name, use, cure) for name, (use, cure) in OPTIONAL.items()],
        "data": [_data(name, file) for name, file in DATA.items()],
    }
    missing = sum(finding.state == "missing" for findings in sections.values() for finding in findings)
    _show(sections, f"{missing} to mend" if missing else "jaxlm can run here")
    return 1 if missing else 0


def _machine() -> Iterator[Finding]:
    old = sys.version_info < (3, 11)
    python = f"{platform.python_version()}, {sys.executable}"
    yield Finding("jaxlm", f"{jaxlm.__version__}, {Path(jaxlm.__file__).parent}")
    yield Finding("python", python, "missing" if old else "ok", "install 3.11 or newer" if old else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("system", f"{platform.system()} {platform.machine()}, {cores} cores, {_memory()}")
    yield Finding("disk", f"{shutil.disk_usage('.').free / 2**30:,.0f} GiB free in {Path.cwd()}")


def _memory() -> str:
    try:
        pages, available = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):  # not every system tells
        return "memory unknown"
    gib = os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{pages * gib:,.1f} GiB memory, {available * gib:,.1f} free"


def _core() -> Iterator[Finding]:
    """Import each package: a version number alone does not prove that it works."""
    for name, module in CORE.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except Exception as error:  # a broken package may raise anything
            if version(name) is None:
                yield Finding(name, "not installed", "missing", f"pip install {name}")
            else:
                cure = f"pip install --force-reinstall {name}"
                yield Finding(name, f"{version(name)} does not import: {_line(error)}", "missing", cure)
        else:
            also = f", jaxlib {version('jaxlib')}" if name == "jax" else ""
            yield Finding(name, f"{version(name) or 'version unknown'}{also}")


def _backend() -> str | None:
    """What JAX computes on; None where it does not start."""
    try:
        import jax

        return jax.default_backend()
    except Exception:  # told by _devices
        return None


def _devices() -> Iterator[Finding]:
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
        yield Finding("backend", f"{_line(error)}{asked}", "missing", cure)
        return
    yield Finding("backend", f"{jax.default_backend()}{asked}; compiles and runs ({seconds:.2f} s)")
    for kind in sorted({device.device_kind for device in devices}):
        same = [device for device in devices if device.device_kind == kind]
        limit = (same[0].memory_stats() or {}).get("bytes_limit")
        yield Finding("devices", f"{len(same)} x {kind}" + (f", {limit / 2**30:,.1f} GiB each" if limit else ""))
    cache = runtime.cache_folder()
    cure = "" if cache else "unset JAXLM_CACHE"
    yield Finding("compile cache", str(cache or "off: every start compiles anew"), "ok" if cache else "absent", cure)
    if jax.default_backend() == "cpu":
        yield _kernels()


def _kernels() -> Finding:
    from jaxlm.nn import native

    if native.width():
        return Finding("CPU kernels", f"compiled for this processor ({native.width() // 2} floats a vector)")
    off = os.environ.get("JAXLM_NATIVE") == "0"
    cure = "unset JAXLM_NATIVE" if off else "apt install gcc (any C compiler)"
    return Finding("CPU kernels", "off" if off else "no C compiler that works: decoding takes longer", "absent", cure)


def _optional(name: str, use: str, cure: str) -> Finding:
    found = version(name)
    return Finding(name, f"{found}, for {use}") if found else Finding(name, f"for {use}", "absent", cure)


def _data(name: str, file: str) -> Finding:
    try:
        return Finding(name, str(find(file).parent))
    except UserError:
        return Finding(name, f"no {file}", "absent", f"export JAXLM_DATA=FOLDER that holds {file.split('/')[0]}/")


def _line(error: Exception) -> str:
    """What happened, in a line that fits a table."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120].rstrip(": ")


def _show(sections: dict[str, list[Finding]], verdict: str) -> None:
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:  # the one finding that cannot be shown as a table
        for finding in (finding for findings in sections.values() for finding in findings):
            print(f"{finding.state:8}{finding.what}: {finding.found}. {finding.cure}".rstrip(". "))
        print(verdict)
        return
    console = Console()
    if not console.is_terminal:
        console.width = 200  # into a file or a pipe: do not break paths
    table = Table(box=None, pad_edge=False)
    for column in ("", "", "found", "command that mends it"):
        table.add_column(column, overflow="fold")
    color = {"ok": "green", "missing": "bold red", "absent": "yellow"}
    for title, findings in sections.items():
        table.add_row(f"[bold]{title}[/bold]")
        for finding in findings:
            state = f"[{color[finding.state]}]{finding.state}[/]"
            table.add_row(f"  {finding.what}", state, escape(finding.found), escape(finding.cure))
    console.print(table, verdict, sep="\n", highlight=False)
