"""Checks of the accelerators of this machine for `jaxlm doctor`: driver, JAX plugin, libtpu, their versions and users.

CUDA 12 needs an NVIDIA driver of at least 525, CUDA 13 of at least 580 (release notes of the CUDA toolkit).
"""

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

T = TypeVar("T")

CheckStatus = Literal["ok", "missing", "optional"]
"""`missing` must be fixed for jaxlm to run; `optional` need not be."""

MIN_DRIVERS = {13: 580, 12: 525}
"""CUDA version -> oldest driver that runs it, newest first."""

CHIP_FILES = re.compile(r"accel\d+|vfio/\d+|nvidia\d+")
"""The files in /dev that a process has open while it uses a TPU or an NVIDIA GPU."""

TPU_LOCK = Path("/tmp/libtpu_lockfile")

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


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


def error_line(error: Exception) -> str:
    """The error in one line that fits a table."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120].rstrip(": ")


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call, or its error. Raises TimeoutError if it takes longer; the call then stays in a thread."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answer.done():
        raise TimeoutError(f"no answer in {seconds:g} s")
    return answer.result()


def pod_hosts() -> int:
    """The number of hosts of the TPU pod that this host belongs to, by TPU_WORKER_HOSTNAMES; 1 outside a pod."""
    return max(1, len(list(filter(None, os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")))))


def device_holders(proc: Path = Path("/proc"), dev: Path = Path("/dev")) -> dict[int, tuple[str, list[str]]]:
    """PID of each other process that has a chip open -> its command and those files, as far as this user may see."""
    holders: dict[int, tuple[str, list[str]]] = {}
    for folder in sorted(proc.glob("[0-9]*"), key=lambda folder: int(folder.name)):
        files = set()
        with contextlib.suppress(OSError):  # another user's process, or one that has ended
            for descriptor in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    files.add(os.readlink(descriptor))
        chips = sorted(file for file in files if CHIP_FILES.fullmatch(file.removeprefix(f"{dev}/")))
        if chips and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                holders[int(folder.name)] = command[:60], chips
    return holders


def check_device_holders(
    backend: str | None, holders: dict[int, tuple[str, list[str]]] | None = None, lock: Path = TPU_LOCK
) -> Iterator[Check]:
    """One check for each process that holds a chip, and one for a lock that no process holds. `backend`: None or "cpu"
    if JAX found no accelerator, which the holder of a TPU prevents."""
    holders = device_holders() if holders is None else holders
    for pid, (command, chips) in holders.items():
        blocks = backend in (None, "cpu") and not any("nvidia" in chip for chip in chips)
        status: CheckStatus = "missing" if blocks else "optional"
        yield Check("chips in use", f"{', '.join(chips)} by process {pid} ({command})", status, f"kill {pid}")
    if lock.exists() and not holders and backend != "tpu":
        detail = f"{lock} is there, but no process of this user holds a chip"
        yield Check("TPU lock", detail, "optional", f"sudo rm {lock} (if no other user runs a program on the TPU)")


def check_accelerators(backend: str | None) -> Iterator[Check]:
    """One check for each kind of accelerator that the system has. `backend`: JAX's default backend, or None."""
    unused = backend == "cpu" and not os.environ.get("JAX_PLATFORMS")
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        yield check_nvidia(nvidia_driver_version(), unused)
    if any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        yield check_tpu(unused)
        yield from check_huge_pages(HUGE_PAGES)


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


def check_huge_pages(file: Path) -> Iterator[Check]:
    """Transparent huge pages, if the system has them: without them a TPU's start-up and transfers are slower."""
    if file.is_file():
        chosen = re.findall(r"\[(\w+)\]", file.read_text(encoding="utf-8"))
        fix = "" if chosen == ["always"] else f"echo always | sudo tee {file}"
        detail = f"{' '.join(chosen)}{': transfers to the TPU are slower' if fix else ''}"
        yield Check("huge pages", detail, "optional" if fix else "ok", fix)


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
    for requirement in (installed_version("jax") and importlib.metadata.requires("jax")) or ():
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
