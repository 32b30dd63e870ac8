"""The exceptions that the command line shows as a sentence, not as a traceback; and lists in their messages."""

import errno
from collections.abc import Sequence


class UserError(Exception):
    """An error that the user can fix. Its message names what was found, what was expected, the place, and the cure."""


class SaveError(UserError):
    """A checkpoint that was not written. Threads of the save may wait for minutes: the process must not join them."""


def list_some(items: Sequence[str], limit: int = 12, separator: str = ", ") -> str:
    """The items in a message, the first `limit` of them and the number of the others; "nothing" if there are none."""
    others = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + others or "nothing"


def one_line(error: Exception) -> str:
    """The error in one line, for users who do not read tracebacks."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        file = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{file}: free some space and repeat the command; a run resumes from its checkpoint"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if "RESOURCE_EXHAUSTED" in str(error):
        return "the device is out of memory: lower --batching.tokens (train) or --batch-tokens (the other commands)"
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text} (run with --debug for the traceback)"
