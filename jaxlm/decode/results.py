"""Why a hypothesis ended, as the small integers that fit in an array."""

from flax import struct

from jaxlm.types import Array

FINISH_NONE = 0
"""There is no such hypothesis: the row's limit is 0, or no token was permitted."""

FINISH_STOP = 1
"""It said a stop id."""

FINISH_LENGTH = 2
"""It reached the row's length limit."""

FINISH_REASONS = ("none", "stop", "length")
"""`REASONS[code]` is the word for a code."""


@struct.dataclass
class Hypotheses:
    """The N best hypotheses of each row, best S first; tokens past the length are 0 (pad).

    logprob_BN is s, the sum of token_logprob_BNT (natural log); score_BN is S; reason_BN: see `jaxlm.decode.results`.
    A row that has fewer than N (all of them, where its limit is 0) has length 0, s = S = -inf and reason NONE there.
    """

    tokens_BNT: Array
    length_BN: Array
    logprob_BN: Array
    score_BN: Array
    reason_BN: Array
    token_logprob_BNT: Array


@struct.dataclass
class GenerationOutput:
    """One continuation a row; tokens past `length_B` are 0 (pad).

    logprob_B is the sum of token_logprob_BT (natural log). reason_B: see `jaxlm.decode.results`; NONE where the limit
    is 0 or where the constraints left no token to say (what was said before that is kept).
    """

    tokens_BT: Array
    length_B: Array
    logprob_B: Array
    token_logprob_BT: Array
    reason_B: Array
