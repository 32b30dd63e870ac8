"""The accelerators that this machine has, and what JAX lacks to use them: driver, plugin, libtpu, and their versions.

CUDA 12 needs an NVIDIA driver of at least 525, CUDA 13 of at least 580 (release notes of the CUDA toolkit).

A row of the table of `jaxlm doctor`.
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
"""`missing` must be mended, `absent` may stay so."""


@dataclass(frozen=True)
class Check:
    """What was looked for, what was found, and the cure if that is not enough."""

    name: str
    detail: str
    status: CheckStatus = "ok"
    fix: str = ""


def installed_version(distribution: str) -> str | None:
    """Of an installed package, else None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


MIN_DRIVERS = {13: 580, 12: 525}
"""CUDA -> the oldest driver that runs it, newest first."""


def check_accelerators(backend: str | None) -> Iterator[Check]:
    """A finding for each kind of accelerator that the system shows. `backend`: what JAX computes on, or None."""
    unseen = backend == "cpu" and not os.environ.get("JAX_PLATFORMS")
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        yield check_nvidia(nvidia_driver_version(), unseen)
    if any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        yield check_tpu(unseen)


def check_nvidia(driver: str | None, unused: bool) -> Check:
    """The driver (`580.65.06`, None: not running) and JAX's plugin for CUDA. `unseen`: JAX fell back to the CPU."""
    if driver is None:
        return Check("NVIDIA GPU", "there, but its driver does not answer", "optional", "nvidia-smi (it tells why)")
    release = int(driver.partition(".")[0])
    best = next((cuda for cuda, oldest in MIN_DRIVERS.items() if release >= oldest), None)
    if best is None:
        cure = f"install driver {MIN_DRIVERS[12]} or newer (580 for CUDA 13)"
        return Check("NVIDIA GPU", f"driver {driver} is too old for JAX", "optional", cure)
    found = {cuda: name for cuda in MIN_DRIVERS if installed_version(name := f"jax-cuda{cuda}-plugin")}
    if not found:
        text = f"driver {driver}, but JAX has no plugin for it"
        return Check("NVIDIA GPU", text, "optional", f"pip install 'jax[cuda{best}]'")
    cuda, name = next(iter(found.items()))
    if release < MIN_DRIVERS[cuda]:
        cure = f"pip uninstall {name}; pip install 'jax[cuda{best}]' (or driver {MIN_DRIVERS[cuda]})"
        return Check("NVIDIA GPU", f"driver {driver} is too old for CUDA {cuda} ({name})", "missing", cure)
    return _check_plugin("NVIDIA GPU", f"driver {driver}, ", name, f"cuda{cuda}", unused)


def check_tpu(unused: bool) -> Check:
    """libtpu, which must be the one that this JAX was built for."""
    if installed_version("libtpu") is None:
        return Check("TPU", "there, but JAX has no libtpu", "optional", "pip install 'jax[tpu]'")
    return _check_plugin("TPU", "", "libtpu", "tpu", unused)


def _check_plugin(name: str, prefix: str, distribution: str, extra: str, unused: bool) -> Check:
    """Whether the package is of the version that the installed JAX asks for, and JAX uses it."""
    found, wanted, jax = (
        installed_version(distribution),
        _required_version(distribution, extra),
        installed_version("jax"),
    )
    if wanted and found != wanted and not f"{found}.".startswith(f"{wanted}."):
        text = f"{prefix}{distribution} {found}, but jax {jax} works with {wanted}"
        return Check(name, text, "missing", f"pip install --upgrade 'jax[{extra}]=={jax}'")
    if unused:
        platform = "tpu" if extra == "tpu" else "cuda"
        cure = f"JAX_PLATFORMS={platform} python -c 'import jax; jax.devices()' (it tells why)"
        return Check(name, f"{prefix}{distribution} {found}, but JAX does not use it", "missing", cure)
    return Check(name, f"{prefix}{distribution} {found}")


def _required_version(distribution: str, extra: str) -> str:
    """The version that the installed JAX asks for under an extra, "" where it names none: `==0.0.42.*` is 0.0.42."""
    try:
        requirements = importlib.metadata.requires("jax") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for text in requirements:
        package, _, condition = text.partition(";")
        if re.match(rf"{re.escape(distribution)}\b(?!-)", package) and re.search(
            rf"extra == ['\"]{extra}['\"]", condition
        ):
            versions = re.findall(r"(?:==|>=)\s*(\d+(?:\.\d+)*)", package)
            return versions[-1] if versions else ""
    return ""


def nvidia_driver_version() -> str | None:
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
