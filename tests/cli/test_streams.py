"""Standard streams as callers leave them: closed, full, without a reader, or with lines that never end."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.cli_runs import command, environment  # noqa: F401

from jaxlm.cli.stdin_lines import STDIN_READ_BYTES, StdinLines
from jaxlm.errors import UserError

JAXLM = f"{sys.executable} -m jaxlm"


def shell(line: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(line, shell=True, env=environment(), capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("words, code", [("list", 0), ("lits", 2), ("evaluate nowhere", 1)])
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "0<&-", "2>&- 0<&-"])
def test_messages_that_nobody_can_read_change_nothing(words, code, redirection):
    result = shell(f"{JAXLM} {words} {redirection}")
    assert result.returncode == code
    assert result.stdout == shell(f"{JAXLM} {words}").stdout, "no message may end up among the results"


def test_stderr_without_a_reader():
    process = subprocess.Popen([sys.executable, "-m", "jaxlm", "lits"], env=environment(), stderr=subprocess.PIPE)
    process.stderr.close()
    assert process.wait(60) == 2


@pytest.mark.parametrize("redirection, code, message", [(">&-", 0, ""), (">/dev/full", 1, "jaxlm: the disk is full")])
def test_results_that_cannot_be_written(redirection, code, message):
    result = shell(f"{JAXLM} list {redirection}")
    assert result.returncode == code and result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == bool(message)


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path):
    code = f"from jaxlm.cli.main import main; main(['list']); file = open({str(tmp_path / 'x')!r}, 'w'); "
    code += "assert file.fileno() > 2; print('a message', file=__import__('sys').stderr)"
    assert shell(f'{sys.executable} -c "{code}" 0<&- >&- 2>&-').returncode == 0
    assert not (tmp_path / "x").read_bytes()


class Chunks:
    """A stream that gives its content in pieces."""

    def __init__(self, content: bytes, size: int = STDIN_READ_BYTES):
        self.stream, self.size, self.num_read = io.BytesIO(content), size, 0

    def read1(self, size: int) -> bytes:
        data = self.stream.read(min(size, self.size))
        self.num_read += len(data)
        return data

    def fileno(self) -> int:
        raise OSError


def _lines(monkeypatch, chunks: Chunks, **options) -> list[str]:
    monkeypatch.setattr(sys, "stdin", type("Stream", (), {"buffer": chunks}))
    return [line for batch in StdinLines(**options).batches() for line in batch]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_are_the_same_however_they_arrive(monkeypatch, size):
    content = "\ufeffuno\r\ndos\n\n\ufefftres\r\r\ncuatro".encode()
    assert _lines(monkeypatch, Chunks(content, size)) == ["uno", "dos", "", "\ufefftres\r", "cuatro"]


@pytest.mark.parametrize("content, size", [(b"ab\n" + b"x" * 10**7, 1 << 16), (b"ab\n" + b"x" * 11 + b"\ny\n", 100)])
def test_a_line_beyond_the_limit_ends_at_the_limit(monkeypatch, content, size):
    chunks = Chunks(content, size)
    with pytest.raises(UserError, match="standard input, line 2: more than 10 bytes, the limit: .*--max-line-mb"):
        _lines(monkeypatch, chunks, max_line_bytes=10)
    assert chunks.num_read <= 2 * size, "the rest is not read"
    assert _lines(monkeypatch, Chunks(b"x" * 10 + b"\n" + b"y" * 10), max_line_bytes=10) == ["x" * 10, "y" * 10]


def test_the_limit_is_an_option(command):  # noqa: F811
    result = command("predict", "nowhere", "--max-line-mb", "0")
    assert result.code == 2 and "--max-line-mb" in result.err


def test_standard_input_that_cannot_be_read(tmp_path):
    code = "from jaxlm.cli.stdin_lines import StdinLines; list(StdinLines().batches())"
    result = shell(f'{sys.executable} -c "{code}" 0> {tmp_path}/x')
    assert "UserError: standard input cannot be read (" in result.stderr
