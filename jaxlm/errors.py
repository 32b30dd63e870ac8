"""The exceptions that the command line shows as a sentence, not as a traceback; and lists in their messages."""

from collections.abc import Sequence


class UserError(Exception):
    """An error that the user can fix. Its message names what was found, what was expected, the place, and the cure."""


class SaveError(UserError):
    """A checkpoint that was not written. Threads of the save may wait for minutes: the process must not join them."""


def list_some(items: Sequence[str], limit: int = 12, separator: str = ", ") -> str:
    """The items in a message, the first `limit` of them and the number of the others; "nothing" if there are none."""
    others = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + others or "nothing"
