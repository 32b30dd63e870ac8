"""Checks of the accelerators of this machine for `jaxlm doctor`: driver, JAX plugin, libtpu, and their versions.

CUDA 12 needs an NVIDIA driver of at least 525, CUDA 13 of at least 580 (release notes of the CUDA toolkit).
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CheckStatus = Literal["ok", "missing", "optional"]
"""`missing` must be fixed for jaxlm to run; `optional` need not be."""

MIN_DRIVERS = {13: 580, 12: 525}
"""CUDA version -> oldest driver that runs it, newest first."""


@dataclass(frozen=True)
class Check:
    """One row of the table: the checked item, its state, and the command that fixes it."""

    name: str
    detail: str
    status: CheckStatus = "ok"
    fix: str = ""


def installed_version(distribution: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_accelerators(backend: str | None) -> Iterator[Check]:
    """One check for each kind of accelerator that the system has. `backend`: JAX's default backend, or None."""
    unused = backend == "cpu" and not os.environ.get("JAX_PLATFORMS")
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        yield check_nvidia(nvidia_driver_version(), unused)
    if any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        yield check_tpu(unused)


def check_nvidia(driver: str | None, unused: bool) -> Check:
    """The driver (`580.65.06`; None: it does not run) and JAX's CUDA plugin. `unused`: JAX fell back to the CPU."""
    name = "NVIDIA GPU"
    if driver is None:
        return Check(name, "present, but its driver does not answer", "optional", "nvidia-smi (shows the reason)")
    release = int(driver.partition(".")[0])
    best_cuda = next((cuda for cuda, oldest in MIN_DRIVERS.items() if release >= oldest), None)
    if best_cuda is None:
        fix = f"install driver {MIN_DRIVERS[12]} or newer (580 for CUDA 13)"
        return Check(name, f"driver {driver} is too old for JAX", "optional", fix)
    cuda = next((cuda for cuda in MIN_DRIVERS if installed_version(f"jax-cuda{cuda}-plugin")), None)
    if cuda is None:
        detail = f"driver {driver}, but JAX has no CUDA plugin"
        return Check(name, detail, "optional", f"pip install 'jax[cuda{best_cuda}]'")
    plugin = f"jax-cuda{cuda}-plugin"
    if release < MIN_DRIVERS[cuda]:
        fix = f"pip uninstall {plugin}; pip install 'jax[cuda{best_cuda}]' (or driver {MIN_DRIVERS[cuda]})"
        return Check(name, f"driver {driver} is too old for CUDA {cuda} ({plugin})", "missing", fix)
    return _check_plugin(name, f"driver {driver}, ", plugin, f"cuda{cuda}", unused)


def check_tpu(unused: bool) -> Check:
    """libtpu, in the version that this JAX needs."""
    if installed_version("libtpu") is None:
        return Check("TPU", "present, but JAX has no libtpu", "optional", "pip install 'jax[tpu]'")
    return _check_plugin("TPU", "", "libtpu", "tpu", unused)


def _check_plugin(name: str, prefix: str, distribution: str, extra: str, unused: bool) -> Check:
    """The check that the package has the version that JAX requires, and that JAX uses it."""
    version, required = installed_version(distribution), _required_version(distribution, extra)
    detail = f"{prefix}{distribution} {version}"
    if required and not f"{version}.".startswith(f"{required}."):
        jax = installed_version("jax")
        fix = f"pip install --upgrade 'jax[{extra}]=={jax}'"
        return Check(name, f"{detail}, but jax {jax} needs {required}", "missing", fix)
    if unused:
        platform = "tpu" if extra == "tpu" else "cuda"
        fix = f"JAX_PLATFORMS={platform} python -c 'import jax; jax.devices()' (shows the reason)"
        return Check(name, f"{detail}, but JAX does not use it", "missing", fix)
    return Check(name, detail)


def _required_version(distribution: str, extra: str) -> str:
    """The version that the installed JAX requires in an extra, "" if it names none: `==0.0.42.*` is 0.0.42."""
    try:
        requirements = importlib.metadata.requires("jax") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for requirement in requirements:
        package, _, condition = requirement.partition(";")
        in_extra = re.search(rf"extra == ['\"]{extra}['\"]", condition)
        if in_extra and re.match(rf"{re.escape(distribution)}\b(?!-)", package):
            versions = re.findall(r"(?:==|>=)\s*(\d+(?:\.\d+)*)", package)
            return versions[-1] if versions else ""
    return ""


def nvidia_driver_version() -> str | None:
    """The version of the running NVIDIA driver; None without one."""
    try:
        report = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        try:
            command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            report = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        except (OSError, subprocess.SubprocessError):
            return None
    match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", report)
    return match[1] if match else None
