"""The accelerators that this machine has, and what JAX lacks to use them: driver, plugin, libtpu, and their versions.

CUDA 12 needs an NVIDIA driver of at least 525, CUDA 13 of at least 580 (release notes of the CUDA toolkit).
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from jaxlm.cli.finding import Finding, version

DRIVERS = {13: 580, 12: 525}
"""CUDA -> the oldest driver that runs it, newest first."""


def accelerators(backend: str | None) -> Iterator[Finding]:
    """A finding for each kind of accelerator that the system shows. `backend`: what JAX computes on, or None."""
    unseen = backend == "cpu" and not os.environ.get("JAX_PLATFORMS")
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        yield nvidia(nvidia_driver(), unseen)
    if any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        yield tpu(unseen)


def nvidia(driver: str | None, unseen: bool) -> Finding:
    """The driver (`580.65.06`, None: not running) and JAX's plugin for CUDA. `unseen`: JAX fell back to the CPU."""
    if driver is None:
        return Finding("NVIDIA GPU", "there, but its driver does not answer", "absent", "nvidia-smi (it tells why)")
    release = int(driver.partition(".")[0])
    best = next((cuda for cuda, oldest in DRIVERS.items() if release >= oldest), None)
    if best is None:
        cure = f"install driver {DRIVERS[12]} or newer (580 for CUDA 13)"
        return Finding("NVIDIA GPU", f"driver {driver} is too old for JAX", "absent", cure)
    found = {cuda: name for cuda in DRIVERS if version(name := f"jax-cuda{cuda}-plugin")}
    if not found:
        text = f"driver {driver}, but JAX has no plugin for it"
        return Finding("NVIDIA GPU", text, "absent", f"pip install 'jax[cuda{best}]'")
    cuda, name = next(iter(found.items()))
    if release < DRIVERS[cuda]:
        cure = f"pip uninstall {name}; pip install 'jax[cuda{best}]' (or driver {DRIVERS[cuda]})"
        return Finding("NVIDIA GPU", f"driver {driver} is too old for CUDA {cuda} ({name})", "missing", cure)
    return _plugged("NVIDIA GPU", f"driver {driver}, ", name, f"cuda{cuda}", unseen)


def tpu(unseen: bool) -> Finding:
    """libtpu, which must be the one that this JAX was built for."""
    if version("libtpu") is None:
        return Finding("TPU", "there, but JAX has no libtpu", "absent", "pip install 'jax[tpu]'")
    return _plugged("TPU", "", "libtpu", "tpu", unseen)


def _plugged(what: str, before: str, name: str, extra: str, unseen: bool) -> Finding:
    """Whether the package is of the version that the installed JAX asks for, and JAX uses it."""
    found, wanted, jax = version(name), _wanted(name, extra), version("jax")
    if wanted and found != wanted and not f"{found}.".startswith(f"{wanted}."):
        text = f"{before}{name} {found}, but jax {jax} works with {wanted}"
        return Finding(what, text, "missing", f"pip install --upgrade 'jax[{extra}]=={jax}'")
    if unseen:
        platform = "tpu" if extra == "tpu" else "cuda"
        cure = f"JAX_PLATFORMS={platform} python -c 'import jax; jax.devices()' (it tells why)"
        return Finding(what, f"{before}{name} {found}, but JAX does not use it", "missing", cure)
    return Finding(what, f"{before}{name} {found}")


def _wanted(name: str, extra: str) -> str:
    """The version that the installed JAX asks for under an extra, "" where it names none: `==0.0.42.*` is 0.0.42."""
    try:
        requirements = importlib.metadata.requires("jax") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for text in requirements:
        package, _, condition = text.partition(";")
        if re.match(rf"{re.escape(name)}\b(?!-)", package) and re.search(rf"extra == ['\"]{extra}['\"]", condition):
            versions = re.findall(r"(?:==|>=)\s*(\d+(?:\.\d+)*)", package)
            return versions[-1] if versions else ""
    return ""


def nvidia_driver() -> str | None:
    """The version of the running driver; None where there is none."""
    try:
        told = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        try:
            command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        except (OSError, subprocess.SubprocessError):
            return None
    match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", told)
    return match[1] if match else None
