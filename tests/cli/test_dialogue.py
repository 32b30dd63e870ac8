"""`jaxlm predict D` at a terminal: it asks for a line, answers it, and asks again, without loading again."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from fixtures import cli_runs

command, trained, workdir = cli_runs.command, cli_runs.trained, cli_runs.workdir  # fixtures


def read_until(descriptor, end, seconds=60):
    """What the terminal shows up to a prompt, or to the end of the program."""
    text, limit = b"", time.monotonic() + seconds
    while not text.endswith(end) and time.monotonic() < limit:
        if select.select([descriptor], [], [], 0.1)[0]:
            try:
                text += os.read(descriptor, 4096)
            except OSError:  # the program has ended
                break
    return text.replace(b"\r\n", b"\n")


@pytest.mark.slow
@pytest.mark.parametrize("last, code", [(b"\x04", 0), (b"\x03", 130)], ids=["Ctrl-D", "Ctrl-C"])
def test_a_dialogue(workdir, command, last, code):
    ours, theirs = pty.openpty()
    program = [sys.executable, "-m", "jaxlm", "predict", workdir]
    process = subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs, env=cli_runs.environment())
    os.close(theirs)
    assert b"Ctrl-D ends them\n> " in read_until(ours, b"> ")
    for line in (b"John", b"the film"):
        os.write(ours, line + b"\n")
        (answer,) = command("predict", workdir, stdin=line + b"\n").lines
        assert read_until(ours, b"\n> ") == line + b"\n" + answer.encode() + b"\n> "
    if last == b"\x03":
        process.send_signal(signal.SIGINT)
    else:
        os.write(ours, last)
    rest = read_until(ours, b"\0")
    assert process.wait(60) == code and b"Traceback" not in rest and (code or b"2 lines in" in rest)
    os.close(ours)
