"""Checks of the fields of a config against the types and the ranges that its class declares.

Ranges go by name, since one name means one thing in all configs of jaxlm; classes of other packages have types alone.
"""

import contextlib
import functools
import math
import sys
import typing
from collections.abc import Mapping
from typing import Any

from jaxlm.errors import UserError
from jaxlm.json_files import check_type

MAX_INT = 2**31 - 1

MAX_SEED = 2**32 - 1
"""JAX drops the higher bits of a seed: 2^32 would be the seed 0."""

MAX_LAYERS = 10_000

AT_LEAST_ONE = """
average_last batch_tokens bottleneck_dim char_vocab_size checkpoint_every decay_every evaluate_every features filters
fixed_batch grad_accum head_dim heads hidden keep_checkpoints kernel_size kv_heads length log_every max_distance
max_length max_shapes max_source_len max_tokens min_count num_beams num_buckets num_labels num_return_sequences
num_samples order original_max_positions prefix_steps rank row_multiple rows sample_size sample_tokens source_length
source_vocab steps tokens updates vocab vocab_size width window word_width
""".split()
"""Sizes. Other integers are 0 or more, layers at most `MAX_LAYERS`."""

SHARES = """
activation_dropout attention_dropout b1 b2 character_coverage dropout ema_decay embedding_dropout end_fraction
input_dropout label_smoothing mask_replace_prob min_lr_ratio mlm_probability momentum noise_density
random_replace_prob rate reset_prob scheduled_sampling short_seq_prob start_fraction test valid weight_drop word_dropout
""".split()
"""Numbers from 0 to 1."""

POSITIVE = "decay_factor epsilon eps factor mean_noise_span_length norm_epsilon theta".split()
"""Numbers above 0."""

AT_LEAST_ZERO = """
activation_reg clip init_scale init_std kl lm_weight max_kl next_sentence_weight out_init_std peak step_timeout
temporal_reg weight_decay
""".split()
"""Numbers of 0 or more. Other numbers are finite; fractions may be negative."""

COLUMNS = ("source", "tag_column", "target", "word_column")
"""Integers that may be negative: columns of a file, counted from the end."""


def check_fields(cls: type, values: Mapping[str, Any], path: str, cure: str) -> None:
    """Raises UserError, with the path of the field, for a value whose type or range is not that of its field."""
    hints, is_own = field_types(cls), cls.__module__.partition(".")[0] == "jaxlm"
    for name, value in values.items():
        check_type(value, hints.get(name, Any), f"{path}.{name}", cure)
        if is_own and isinstance(value, int | float) and not isinstance(value, bool):
            low, high = _range(name, value)
            if not low <= value <= high:
                expected = (
                    f"{low} to {high}" if name in SHARES else f"{low} or more" if value < low else f"at most {high}"
                )
                expected = expected if math.isfinite(value) else "a finite number"
                raise UserError(f"{path}.{name}: expected {expected}, found {value!r:.40}: {cure}")


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The annotations of a class; {} if one of them names something that cannot be found."""
    with contextlib.suppress(NameError, AttributeError, TypeError):
        return typing.get_type_hints(cls)
    return {}


def _range(name: str, value: float) -> tuple[float, float]:
    """The smallest and the largest value of a field."""
    if name in SHARES:
        return 0, 1
    if name in POSITIVE or isinstance(value, float):
        low = sys.float_info.min if name in POSITIVE else 0.0 if name in AT_LEAST_ZERO else -sys.float_info.max
        return low, sys.float_info.max if isinstance(value, float) else MAX_INT
    if name == "seed":
        return 0, MAX_SEED
    if name in COLUMNS:
        return -MAX_INT, MAX_INT
    is_layers = name == "layers" or name.endswith("_layers")
    return int(is_layers or name in AT_LEAST_ONE), MAX_LAYERS if is_layers else MAX_INT
