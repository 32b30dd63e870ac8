"""Print the notes of a release: the part of CHANGELOG.md under its version.

python .ci/release_notes.py 0.2.0
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def release_notes(changelog: str, version: str) -> str:
    """The lines between the heading of the version and the next one. Raises SystemExit without such a heading."""
    parts = re.split(r"^## \[([^\]]+)\].*$", changelog, flags=re.MULTILINE)
    notes = dict(zip(parts[1::2], parts[2::2], strict=True))
    if version not in notes:
        sys.exit(f"CHANGELOG.md has no heading `## [{version}]`; it has {', '.join(notes)}")
    return notes[version].strip()


if __name__ == "__main__":
    print(release_notes((ROOT / "CHANGELOG.md").read_text(), *sys.argv[1:2]))
