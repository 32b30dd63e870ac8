"""The command `jaxlm COMMAND ...`: dispatch to the command's module, and one line and an exit code for every error.

Exit codes: 0 success, 1 failure, 2 wrong command line, 130 interrupted, 141 the reader of the output closed it.
"""

import contextlib
import importlib
import io
import os
import sys
import traceback

from jaxlm import __version__
from jaxlm.cli.parser import COMMANDS, EXIT_INTERRUPTED, UsageError, command_module, did_you_mean
from jaxlm.errors import SaveError, one_line

EXIT_BROKEN_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code. Errors are printed in one line, with --debug as a traceback."""
    is_program = argv is None
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    open_streams()
    try:
        code = _run_command(argv)
        sys.stdout.flush()
        return code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"jaxlm: {one_line(error)}", file=sys.stderr, flush=True)
        if isinstance(error, SaveError) and is_program:
            os._exit(1)
        return 2 if isinstance(error, UsageError) else 1
    finally:
        close_stdout()


def _run_command(argv: list[str]) -> int:
    if not argv:
        raise UsageError(f"expected a command: {', '.join(COMMANDS)} (`jaxlm --help` describes them)")
    command, arguments = argv[0], argv[1:]
    if command in ("-h", "--help", "help"):
        commands = "\n".join(f"  {command:11}{summary}" for command, summary in COMMANDS.items())
        note = "`jaxlm COMMAND --help` lists the options; --debug shows the traceback of an error."
        print(f"usage: jaxlm COMMAND ...\n\n{commands}\n\n{note}")
    elif command in ("-V", "--version"):
        print(f"jaxlm {__version__}")
    elif command in COMMANDS:
        return importlib.import_module(command_module(command)).main(arguments)
    else:
        raise UsageError(
            f"no command {command!r}{did_you_mean(command, COMMANDS)} (the commands are {', '.join(COMMANDS)})"
        )
    return 0


class Messages(io.TextIOWrapper):
    """Standard error. A message that nobody can read is lost; it does not end a run."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def open_streams() -> None:
    """Let closed streams end in the null device: the next file to be opened must not take the number of one of them,
    since libraries write messages to that number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = Messages(open(2, "wb", closefd=False), "utf-8", "backslashreplace", line_buffering=True)


def close_stdout() -> None:
    """Write what is pending; what cannot be written is lost, and Python's own flush at exit finds nothing to do."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor (in tests)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
