"""Why a hypothesis ended, as the small integers that fit in an array."""

NONE = 0
"""There is no such hypothesis: the row's limit is 0, or no token was permitted."""
STOP = 1
"""It said a stop id."""
LENGTH = 2
"""It reached the row's length limit."""

REASONS = ("none", "stop", "length")
"""`REASONS[code]` is the word for a code."""
