"""The command `jaxlm COMMAND ...`: dispatch to the command's module, and one line and an exit code for every error.

Exit codes: 0 success, 1 failure, 2 wrong command line, 130 interrupted, 141 the reader of the output closed it.
"""

import importlib
import os
import sys
import traceback

from jaxlm import __version__
from jaxlm.cli.parser import COMMANDS, EXIT_INTERRUPTED, UsageError, command_module, did_you_mean
from jaxlm.cli.standard_streams import close_stdout, open_streams
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
