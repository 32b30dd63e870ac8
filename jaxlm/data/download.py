"""Downloads of the data sets of the catalog: resumed, verified, whole or not at all.

An address is asked for what is missing, again after a cut or a stall, and the next one after its tries. What arrives is
kept aside until its content has the size and the SHA-256 of the catalog: a server can waste time, and nothing else.
"""

import gzip
import http.client
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from jaxlm.data.catalog import READ_BYTES, DataSet, File, content_fault
from jaxlm.errors import UserError
from jaxlm.filesystem import check_writable, format_bytes

STALL_SECONDS, BYTES_PER_SECOND = 30.0, 1000
"""A connection counts as dead if it is silent that long, or slower than this."""

TRIES = 4
"""Tries of one address; each continues where the last one was cut."""

MAX_ARCHIVE_BYTES = 1 << 30

Report = Callable[[int, int], None]
"""Called with the bytes of a file that have arrived and those to expect (0: not known)."""


def missing_files(data_set: DataSet, folder: Path) -> list[str]:
    """The files of a data set that are not in `folder`. Raises UserError for one with other content."""
    present = [name for name in data_set.files if (folder / name).exists()]
    for name in present:
        if fault := content_fault(folder / name, data_set.files[name]):
            raise UserError(f"{folder / name} {fault}: move it away, and the file of the catalog is fetched")
    return [name for name in data_set.files if name not in present]


def get_file(data_set: DataSet, name: str, folder: Path, report: Report = lambda *_: None) -> None:
    """Fetch a file of a data set. Raises UserError with every address and its reason, or if the disk is full."""
    file, reasons = data_set.files[name], ""
    check_writable(folder, 2 * file.bytes)
    for template in data_set.addresses:
        address = template.replace("{path}", urllib.parse.quote(file.path))
        try:
            reason = _try_address(address, file, folder / name, report)
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror or error}: free some space, and start again") from error
        if not reason:
            return
        reasons += f"\n  {address}: {reason}"
    raise UserError(
        f"{name} could not be fetched:{reasons}\nCheck the network, or put the file into {folder}: "
        "`jaxlm data check` compares it with the catalog"
    )


def _try_address(address: str, file: File, path: Path, report: Report) -> str:
    """Fetch a file to its place; return why that failed, or "". Raises OSError if the disk fails."""
    partial, reason = path.with_name(f".{path.name}.download"), ""
    limit = MAX_ARCHIVE_BYTES if file.member else file.bytes + READ_BYTES
    for attempt in range(TRIES):
        time.sleep(attempt)
        try:
            was_resumed = _download(address, partial, limit, report)
        except _NetworkError as error:
            reason = str(error)
            if error.is_final:
                break
            continue
        reason = _store(partial, file, path)
        partial.unlink(missing_ok=True)
        if not reason or not was_resumed:
            break
    return reason


class _NetworkError(Exception):
    """An address did not give its file; `is_final`: it never will."""

    def __init__(self, reason: str, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


def _download(address: str, partial: Path, limit: int, report: Report) -> bool:
    """Append what is missing to a file; return True if there was a part of it. Raises OSError if the disk fails."""
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "jaxlm", "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is missing
            return True
        raise _NetworkError(f"{error.code} {error.reason}", is_final=error.code < 500 and error.code != 429) from None
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(str(getattr(error, "reason", error)) or type(error).__name__) from None
    with response:
        is_rest = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        arrived = start = start if is_rest else 0
        total = start + (response.length or 0)
        began = time.monotonic()
        with partial.open("ab" if is_rest else "wb") as output:
            while block := _read(response, arrived):
                output.write(block)
                arrived += len(block)
                report(arrived, total)
                seconds = time.monotonic() - began
                if arrived > limit:
                    raise _NetworkError(f"sends more than {format_bytes(limit)}, the limit", is_final=True)
                if seconds > STALL_SECONDS and arrived - start < seconds * BYTES_PER_SECOND:
                    raise _NetworkError(f"slower than {BYTES_PER_SECOND:,} bytes a second")
    if arrived < total:
        raise _NetworkError(f"cut after {arrived:,} of {total:,} bytes")
    return is_rest


def _read(response: http.client.HTTPResponse, arrived: int) -> bytes:
    try:
        return response.read1(READ_BYTES)
    except TimeoutError:
        raise _NetworkError(f"silent for {STALL_SECONDS:.0f} s after {arrived:,} bytes") from None
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(f"cut after {arrived:,} bytes ({error})") from None


def _store(partial: Path, file: File, path: Path) -> str:
    """Put the content of a download to its place, compressed if its name says so; return its fault, or ""."""
    aside = path.with_name(f".{path.name}.part")
    try:
        with partial.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = zipfile.ZipFile(raw).open(file.member) if file.member else raw
            with aside.open("wb") as output:
                if is_gzip or path.suffix != ".gz":
                    shutil.copyfileobj(stream, output)
                else:
                    with gzip.GzipFile("", "wb", fileobj=output, mtime=0) as packed:
                        while (block := stream.read(READ_BYTES)) and packed.tell() <= file.bytes:
                            packed.write(block)
        fault = content_fault(aside, file)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError) as error:
        fault = f"is not an archive with {file.member} ({error})"
    if fault:
        aside.unlink(missing_ok=True)
    else:
        aside.replace(path)
    return fault
