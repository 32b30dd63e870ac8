"""tpu_setup.sh on a host: the installation, by --dry-run, on several kinds of machines."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SCRIPT = Path(__file__).resolve().parents[2] / "tpu_setup.sh"
APT = "sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 --quiet"


@pytest.fixture
def install(tmp_path):
    """Calls the script with --dry-run and nothing on the PATH but `commands` (name -> body; "": this machine's own)."""

    def call(*words: str, **commands: str) -> subprocess.CompletedProcess:
        for name, body in {"dirname": "", "sed": "", **commands}.items():
            file = tmp_path / name
            if body:
                file.write_text(f"#!/bin/bash\n{body}\n")
                file.chmod(0o755)
            else:
                file.symlink_to(shutil.which(name) or "/nowhere")
        env = {**os.environ, "PATH": str(tmp_path), "HOME": "/home/me"}
        command = [shutil.which("bash") or "bash", str(SCRIPT), *words, "--dry-run"]
        return subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    return call


def shown(found: subprocess.CompletedProcess) -> list[str]:
    assert found.returncode == 0, found.stderr
    return [line.removeprefix("+ ") for line in found.stdout.splitlines()]


def test_a_host_that_has_all_gets_an_environment(install, tmp_path):
    folder = tmp_path / "my venv"
    commands = shown(install("--venv", str(folder), "--python", sys.executable, make=""))
    assert commands == [
        f"{sys.executable} -m venv --clear '{folder}'",
        f"'{folder}/bin/python' -m pip install --quiet --constraint launch/constraints.txt --editable '.[tpu]'",
        f"'{folder}/bin/jaxlm' doctor",
    ]
    assert not folder.exists()


def test_an_existing_environment_stays(install, tmp_path):
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/pip").write_text("")
    (tmp_path / "venv/bin/pip").chmod(0o755)
    mounted = {"mountpoint": "exit 0", "make": ""}
    commands = shown(install("--venv", str(tmp_path / "venv"), "--python", sys.executable, "--bucket", "b", **mounted))
    assert [command.split()[-1] for command in commands] == ["'.[tpu]'", "doctor"]


def test_a_bare_machine_gets_python_and_the_bucket(install):
    """Ubuntu 22.04 with its Python 3.10, without gcsfuse and make."""
    machine = {"python3": "exit 1", "apt-cache": "exit 1", "lsb_release": "echo jammy", "mountpoint": "exit 1"}
    machine |= dict.fromkeys(["apt-get", "sudo", "add-apt-repository"], "exit 99")
    found = install("install", "--bucket", "gs://b", **machine)
    commands, venv = shown(found), "/home/me/jaxlm-venv"
    assert commands[:6] == [
        f"{APT} update",
        "sudo add-apt-repository --yes ppa:deadsnakes/ppa",
        f"{APT} install --yes python3.12 python3.12-venv",
        f"{APT} install --yes make",
        f"python3.12 -m venv --clear {venv}",
        f"{venv}/bin/python -m pip install --quiet --constraint launch/constraints.txt --editable '.[tpu]'",
    ]
    assert f"{APT} install --yes gcsfuse" in commands and "gcsfuse-jammy main" in found.stdout
    mount = "gcsfuse --implicit-dirs --rename-dir-limit=100000 b /home/me/bucket"
    assert commands[-2:] == [mount, f"{venv}/bin/jaxlm doctor"]


@pytest.mark.parametrize("words, machine, expected", [
    ((), {"python3": "exit 1"}, "sudo apt install python3.12-venv"),
    (("--python", "/nowhere/python3"), {}, "/nowhere/python3 does not run, is older than 3.11"),
])  # fmt: skip
def test_a_host_without_python_prints_the_fix(install, words, machine, expected):
    found = install(*words, **machine)
    assert found.returncode == 1 and expected in found.stderr and len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize("state, commands", [
    ("always [madvise] never", ["sudo sh -c echo always >{}"]), ("[always] madvise never", []), (None, []),
])  # fmt: skip
def test_huge_pages_are_enabled_where_they_are_not(tmp_path, state, commands):
    file = tmp_path / "enabled"
    if state:
        file.write_text(state + "\n")
    script = f"run() {{ echo \"$@\"; }}; source '{SCRIPT.parent}/launch/tpu_host.sh'; enable_huge_pages '{file}'"
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [command.format(file) for command in commands]


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_the_constraints_name_one_version_of_each_dependency(python):
    """Within the bounds of pyproject.toml; JAX's own libraries follow from its version."""
    lines = (SCRIPT.parent / "launch/constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    chosen = {r.name: r for r in pinned if r.marker is None or r.marker.evaluate({"python_version": python})}
    needed = tomllib.loads((SCRIPT.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    assert len(chosen) == len({r.name for r in pinned}) and chosen["jaxlib"].specifier == chosen["jax"].specifier
    for requirement in map(Requirement, needed):
        (version,) = chosen[requirement.name].specifier
        assert version.operator == "==" and version.version in requirement.specifier
