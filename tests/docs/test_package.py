"""The scripts that check a release: the notes are a part of the changelog, and the metadata agree."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

import jaxlm

ROOT = Path(__file__).resolve().parents[2]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_release_notes_are_a_part_of_the_changelog():
    notes = load_script("release_notes").release_notes
    text = "# Changelog\n\n## [Unreleased]\n\nnew\n\n## [0.2.0] - 2027-01-31\n\n### Added\n\n- a\n\n## [0.1.0]\n\nold\n"
    assert notes(text, "0.2.0") == "### Added\n\n- a"
    assert notes(text, "Unreleased") == "new"
    with pytest.raises(SystemExit, match=r"no heading `## \[3\.0\]`; it has Unreleased, 0\.2\.0, 0\.1\.0"):
        notes(text, "3.0")
    assert notes((ROOT / "CHANGELOG.md").read_text(), "Unreleased")


def test_versions_agree():
    assert f"\nversion: {jaxlm.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_constraints_name_every_core_dependency():
    """A constraints file pins every core dependency for every Python that is supported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "launch/constraints.txt").read_text().splitlines()
    pins = [line.split("==", 1)[0] for line in lines if line and not line.startswith("#")]
    for dependency in project["dependencies"]:
        assert dependency.split(">=")[0] in pins, dependency
