"""Collation: the arrays of a batch from columns of ids.

Columns, each a `Ragged` of ids:

| column      | a row is                                     | becomes                                              |
|-------------|----------------------------------------------|------------------------------------------------------|
| "source"    | a text                                       | `source_BS` (ids, EOS)                               |
| "target"    | a text                                       | `target_BT` (BOS, ids), `label_BT` (ids, EOS)        |
| "loss_mask" | 1 or 0 for each id of the target and its EOS | `loss_mask_BT`                                       |
| "label"     | an id for each token of the source           | `token_label_BS`, -1 where there is none             |
| "class"     | one id (int), or one number (float32)        | `class_B`, -1 for filler rows; `value_B`, NaN there  |
| "reference" | two numbers, float32                         | `reference_logprob_BA`, 0 for filler rows            |
| "character" | the spelling of one token of all the sources | `character_BSW`, 0 after the last character          |

"other_target" and "other_loss_mask" are those of a second answer to the prompt of each row: the batch `other`.
"""

from typing import Any

import numpy as np

from jaxlm.data.ragged import Columns, Ragged, concat_ranges
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.data.tokenizers.simple import MAX_WORD_CHARS
from jaxlm.types import Batch

OTHER = "other_"
"""The prefix of the columns of a second answer."""

TEXT_COLUMNS = ("source", "target", OTHER + "target")
"""The columns whose lengths decide which examples share a batch."""


def collate(
    columns: Columns,
    examples: np.ndarray,
    row_index: np.ndarray,
    shape: tuple[int, int, int],
    packed: bool,
    special: SpecialIds = OWN_SPECIAL_IDS,
) -> Batch:
    """A batch of the given numbers of rows, source positions and target positions.

    Args:
      examples: indices into the columns.
      row_index: the row of each example, ascending; examples of one row follow each other without a gap.
      packed: whether the batch has segment numbers.

    Each example ends with EOS, and one too long for its row is cut. Ids are int32, masks bool, padding is 0.
    """
    fields: dict[str, Any] = {}
    num_rows, source_length, target_length = shape
    if "source" in columns:
        label, _, segment = _fill_rows(columns["source"], examples, row_index, (num_rows, source_length), special)
        fields |= {"source_BS": label, "source_valid_BS": segment > 0}
        fields |= {"source_segment_BS": segment} if packed else {}
    if "target" in columns:
        label, model_input, segment = _fill_rows(
            columns["target"], examples, row_index, (num_rows, target_length), special
        )
        fields |= {"target_BT": model_input, "label_BT": label, "target_valid_BT": segment > 0}
        fields |= {"target_segment_BT": segment} if packed else {}
    if "loss_mask" in columns:
        fields["loss_mask_BT"] = _loss_mask(columns, examples, row_index, (num_rows, target_length))
    if "label" in columns or "character" in columns:
        fields |= _token_level_fields(columns, examples, row_index, (num_rows, source_length))
    if "class" in columns:
        labels = columns["class"].flat[examples]
        field = "value_B" if labels.dtype == np.float32 else "class_B"
        fields[field] = np.full(num_rows, np.nan, np.float32) if field == "value_B" else np.full(num_rows, -1, np.int32)
        fields[field][row_index] = labels
    if "reference" in columns:
        fields["reference_logprob_BA"] = np.zeros((num_rows, 2), np.float32)
        fields["reference_logprob_BA"][row_index] = columns["reference"].gather(examples)[0].reshape(-1, 2)
    if other := {name.removeprefix(OTHER): column for name, column in columns.items() if name.startswith(OTHER)}:
        fields["other"] = collate(other, examples, row_index, shape, packed, special)
    return Batch(**fields)


def _token_level_fields(
    columns: Columns, examples: np.ndarray, row_index: np.ndarray, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The fields that have a value for each token of the source; `shape` = (rows, length)."""
    source = columns["source"]
    count = np.minimum(source.lengths[examples], shape[1] - 1)
    start, _ = _example_starts(row_index, count, shape[1])
    position = concat_ranges(start, count)  # of each token in the flat batch
    token = concat_ranges(source.offsets[examples], count)  # its index in the flat column
    fields: dict[str, np.ndarray] = {}
    if "label" in columns:
        label = np.full(shape, -1, np.int32)
        label.reshape(-1)[position] = columns["label"].flat[token]
        fields["token_label_BS"] = label
    if "character" in columns:
        character = np.zeros((*shape, MAX_WORD_CHARS), np.int32)
        ids, count = columns["character"].gather(token, max_length=MAX_WORD_CHARS)
        character.reshape(-1)[concat_ranges(position * MAX_WORD_CHARS, count)] = ids
        fields["character_BSW"] = character
    return fields


def _loss_mask(columns: Columns, examples: np.ndarray, row_index: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mask where `label_BT` has its labels. The EOS after a target that is cut is not its true end: it is False."""
    column, count = columns["loss_mask"], np.minimum(columns["target"].lengths[examples], shape[1] - 1)
    start, _ = _example_starts(row_index, count, shape[1])
    mask = np.zeros(shape, bool).reshape(-1)
    mask[concat_ranges(start, count + 1)] = column.flat[concat_ranges(column.offsets[examples], count + 1)]
    mask[(start + count)[column.lengths[examples] > count + 1]] = False
    return mask.reshape(shape)


def _example_starts(row_index: np.ndarray, count: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The start of each example (`count` ids, EOS) in a flat (rows * length,) batch, and its number in its row."""
    first_of_row = np.searchsorted(row_index, row_index)  # of each example, the first example in the same row
    before = np.cumsum(count + 1) - (count + 1)  # positions of all examples before this one
    return row_index * length + before - before[first_of_row], np.arange(len(row_index)) - first_of_row


def _fill_rows(
    column: Ragged, examples: np.ndarray, row_index: np.ndarray, shape: tuple[int, int], special: SpecialIds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids + EOS, BOS + ids, segment numbers from 1), each int32 of `shape` = (rows, length)."""
    num_rows, length = shape
    ids, count = column.gather(examples, max_length=length - 1)
    start, number = _example_starts(row_index, count, length)
    label, model_input, segment = (np.zeros(num_rows * length, np.int32) for _ in range(3))
    position = concat_ranges(start, count)
    label[position] = ids
    label[start + count] = special.eos
    model_input[position + 1] = ids
    model_input[start] = special.start
    segment[concat_ranges(start, count + 1)] = np.repeat(number + 1, count + 1)  # EOS belongs to its example
    return label.reshape(shape), model_input.reshape(shape), segment.reshape(shape)
