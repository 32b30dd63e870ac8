"""Folders and files of a run: checked before the run starts, locked while it runs, written whole or not at all."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxlm.errors import UserError


def check_writable(folder: Path | str, bytes_needed: int = 0) -> None:
    """Create `folder`, write and remove a test file, and compare the free space with `bytes_needed`.

    Raises UserError if one of these fails.
    """
    folder = Path(folder)
    if re.match(r"\w{2,}:/", str(folder)):
        raise UserError(f"{folder} is an address, expected a folder: mount the bucket as one (see docs/launch.md)")
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        for file in folder.glob(".probe-*"):  # also those of processes that were killed here
            file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write into {folder}: {error.strerror or error}: choose another --workdir or fix its permissions"
        ) from error
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise UserError(
            f"{folder} has {format_bytes(free)} free, the checkpoints of this run need {format_bytes(bytes_needed)}: "
            "free disk space, keep fewer checkpoints, or choose another --workdir"
        )


def read_bounded(path: Path | str, max_bytes: int) -> bytes:
    """The content of a file. Raises UserError if it is missing, has more than `max_bytes`, or is a folder or a pipe."""
    path = Path(path)
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}: expected a file of at most {format_bytes(max_bytes)}")
    content = b""
    if path.stat().st_size <= max_bytes:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)  # it may grow
    if path.stat().st_size > max_bytes or len(content) > max_bytes:
        size = f"{format_bytes(path.stat().st_size)}, expected at most {format_bytes(max_bytes)}"
        raise UserError(f"{path} has {size}: it is damaged, or another file of that name")
    return content


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends; if the block or the process fails, `path` stays."""
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the content is on the disk before the name is
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def create_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A folder that becomes `folder` when the block ends; if it fails, it is removed.

    `folder` is empty or missing, or is replaced; one process creates it at a time.
    """
    folder = Path(folder).resolve()
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if replace:
            remove_folder(folder)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def copy_folder(source: Path, target: Path, symlinks: bool = False) -> None:
    """Copy the files and folders in `source` into `target`. Raises UserError for the first that cannot be copied."""
    try:
        shutil.copytree(source, target, symlinks=symlinks, dirs_exist_ok=True)
    except shutil.Error as error:
        name, _, reason = error.args[0][0]
        raise UserError(f"{name} cannot be copied ({reason}): remove it, or free some space") from None


def remove_folder(folder: Path) -> None:
    """Remove a folder at once: after a kill it is whole or gone."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
        shutil.rmtree(old, ignore_errors=True)


def write_all(file: io.FileIO, content: bytes) -> None:
    """Append to an unbuffered file. Raises OSError here, and not again when the file is closed."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing."""
    with open_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock `folder` against other processes until the block, or this process, ends.

    Raises UserError if another process holds the lock. Does nothing if files cannot be locked (Windows, some network
    disks). Removes the folder if it is empty in the end.
    """
    check_writable(folder)
    lock = folder / ".lock"
    descriptor = _lock_file(lock)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a disk that has failed: the lock ends with the process
            lock.unlink(missing_ok=True)
            folder.rmdir()
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """True if a process holds the lock of `lock_folder`."""
    try:
        import fcntl

        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        pass
    return False


def _lock_file(path: Path) -> int:
    """The descriptor of the locked file at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            raise UserError(
                f"another run ({owner or 'unknown process'}) is training in {path.parent}: wait for its end, stop it "
                "(Ctrl-C saves), or choose another --workdir"
            ) from None
        except (ImportError, OSError):
            return descriptor
        if os.fstat(descriptor).st_nlink:  # otherwise its last owner removed it between the two calls
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()}".encode())
            return descriptor
        os.close(descriptor)


def format_bytes(num_bytes: int) -> str:
    """A number of bytes with a unit: 1.5 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} bytes"
