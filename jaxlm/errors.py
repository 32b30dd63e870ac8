"""The one exception that the command line shows as a sentence, not as a traceback."""


class UserError(Exception):
    """A mistake that the user can mend. The message says what was found, what was expected, where, and the cure."""
