"""The packages that a GPU machine with JAX, Flax, Optax and Orbax may lack, as wheels that travel with the script.

    python -m benchmarks.gpu.wheels FOLDER      downloads them for Python 3.12 on x86-64 Linux

`benchmarks/gpu.sh --wheels FOLDER` installs them on the machine, which needs no network, into a temporary folder.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

WHEELS = ("grain", "array-record", "portpicker")
"""What jaxlm imports in `train` and `bench` that the machine has not; tensorflow-datasets is for WMT14's text only."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def download(folder: Path, python: str = "3.12") -> None:
    """Download the wheels, without their dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, *WHEELS], check=True)


def install(folder: Path) -> Path:
    """Install every wheel of a folder into a temporary folder, without a network; the folder. Raises SystemExit."""
    files = sorted(map(str, folder.glob("*.whl")))
    if not files:
        raise SystemExit(
            f"--wheels {folder}: no *.whl in it; `python -m benchmarks.gpu.wheels {folder}` downloads them"
        )
    target = Path(tempfile.mkdtemp(prefix="jaxlm-wheels-"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--target", str(target), *files], check=True)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    download(parser.parse_args().folder)
