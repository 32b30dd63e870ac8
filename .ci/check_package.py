"""Check the built wheel and source archive in a folder: their contents, their sizes, and the wheel's metadata.

python .ci/check_package.py dist
"""

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 4 << 20


def check(condition: object, message: str) -> None:
    """End with the message unless the condition holds."""
    if not condition:
        sys.exit(f"package: {message}")


def tracked(folder: str) -> set[str]:
    """The files of a folder that git knows."""
    command = ["git", "-C", str(ROOT), "ls-files", folder]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def check_wheel(path: Path) -> None:
    """One package, with every tracked file of the library and its experiments, and nothing else."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        record = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(record).decode())
    modules = {name for name in names if ".dist-info/" not in name}
    expected = tracked("jaxlm") | {f"jaxlm/shipped/{name}" for name in tracked("experiments")}
    check(modules == expected, f"the wheel differs from the tracked files: {sorted(modules ^ expected)[:10]}")
    check(metadata["Name"] == "jaxlm" and metadata["License-Expression"] == "Apache-2.0", "wrong name or license")
    core = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    check(len(core) <= 12, f"the core has {len(core)} dependencies; twelve are allowed")
    version = metadata["Version"]
    check(f'__version__ = "{version}"' in (ROOT / "jaxlm/__init__.py").read_text(), f"jaxlm is not version {version}")
    check(f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(), f"CITATION.cff is not of version {version}")


def check_source(path: Path) -> None:
    """All that is needed to build and test, and no data."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "Makefile", "README.md", "LICENSE"} | tracked("tests") | tracked("experiments")
    check(needed <= names, f"the source archive lacks {sorted(needed - names)[:10]}")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    wheels, sources = list(folder.glob("*.whl")), list(folder.glob("*.tar.gz"))
    check(len(wheels) == len(sources) == 1, f"expected one wheel and one source archive in {folder}")
    check(max(path.stat().st_size for path in wheels + sources) < MAX_BYTES, f"an archive has over {MAX_BYTES} bytes")
    check_wheel(wheels[0])
    check_source(sources[0])
    print(f"{wheels[0].name} and {sources[0].name}: right")
