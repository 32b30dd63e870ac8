"""Whether a folder can take what a run will write, asked before the run starts."""

import os
import shutil
from pathlib import Path

from jaxlm.errors import UserError


def check_writable(folder: Path | str, bytes_needed: int = 0) -> None:
    """Create `folder`, write a probe file into it, and compare the free space with `bytes_needed`.

    Raises UserError where one of the three fails. Leaves the folder behind, and no probe.
    """
    folder = Path(folder)
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write into {folder}: {error.strerror or error}: choose another --workdir or mend its permissions"
        ) from error
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise UserError(
            f"{folder} has {size(free)} free, the checkpoints of this run need {size(bytes_needed)}: "
            "free disk space, keep fewer checkpoints, or choose another --workdir"
        )


def size(count: int) -> str:
    """Bytes as people read them: 1.5 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
