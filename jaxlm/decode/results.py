"""The results of beam search and sampling, and the finish reasons as integers."""

from flax import struct

from jaxlm.types import Array

FINISH_NONE, FINISH_STOP, FINISH_LENGTH = range(3)
"""No hypothesis (the row's limit is 0, or the masks allowed no token); it ended in a stop id; it reached the limit."""

FINISH_REASONS = ("none", "stop", "length")
"""The names of the codes, in order."""


@struct.dataclass
class Hypotheses:
    """The N best hypotheses of each row, best S first; tokens past the length are 0 (pad).

    logprob_BN is s, the sum of token_logprob_BNT (natural log); score_BN is S; reason_BN is a code of this module.
    Missing hypotheses (all of a row with limit 0) have length 0, s = S = -inf and reason NONE.
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

    logprob_B is the sum of token_logprob_BT (natural log). reason_B is a code of this module; NONE if the limit is 0 or
    the masks allowed no further token (the tokens before are kept).
    """

    tokens_BT: Array
    length_B: Array
    logprob_B: Array
    token_logprob_BT: Array
    reason_B: Array
