"""From columns of ids to arrays: `Batches[k]` makes batch k of a plan, `eval_batches` visits every row once.

Columns, each a `Ragged` of ids:

| column      | a row is                                     | becomes                                              |
|-------------|----------------------------------------------|------------------------------------------------------|
| "source"    | a text                                       | `source_BS` (ids, EOS)                               |
| "target"    | a text                                       | `target_BT` (BOS, ids), `label_BT` (ids, EOS)        |
| "label"     | an id for each token of the source           | `token_label_BS`, -1 where there is none             |
| "class"     | one id (int), or one number (float32)        | `class_B`, -1 for filler rows; `value_B`, NaN there  |
| "character" | the spelling of one token of all the sources | `character_BSW`, 0 after the last character          |
"""

from typing import Any

import numpy as np

from jaxlm.data.ragged import Columns, Ragged, concat_ranges
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.types import Batch

MAX_WORD_CHARACTERS = 16
"""Characters of a word that are kept."""

TEXT_COLUMNS = ("source", "target")
"""The columns whose lengths decide what shares a batch."""

TOKEN_LEVEL_FIELDS = {"token_label_BS", "character_BSW"}


def collate(
    columns: Columns,
    examples: np.ndarray,
    row_index: np.ndarray,
    num_rows: int,
    source_length: int,
    target_length: int,
    packed: bool,
    special: SpecialIds = OWN_SPECIAL_IDS,
) -> Batch:
    """A Batch of shape (rows, source) and (rows, target). `row_index` (ascending) gives the row of each example.

    Examples of one row follow each other without a gap; each ends with EOS, and one too long for its row is cut.
    Segment numbers are there only if `packed`. Ids are int32, masks bool, padding is 0.
    """
    fields: dict[str, Any] = {}
    if "source" in columns:
        ended, _, segment = _fill_rows(columns["source"], examples, row_index, (num_rows, source_length), special)
        fields |= {"source_BS": ended, "source_valid_BS": segment > 0}
        fields |= {"source_segment_BS": segment} if packed else {}
    if "target" in columns:
        ended, begun, segment = _fill_rows(columns["target"], examples, row_index, (num_rows, target_length), special)
        fields |= {"target_BT": begun, "label_BT": ended, "target_valid_BT": segment > 0}
        fields |= {"target_segment_BT": segment} if packed else {}
    if "label" in columns or "character" in columns:
        at, token = _token_positions(columns["source"], examples, row_index, num_rows, source_length)
        if "label" in columns:
            fields["token_label_BS"] = np.full(num_rows * source_length, -1, np.int32)
            fields["token_label_BS"][at] = columns["label"].flat[token]
        if "character" in columns:
            fields["character_BSW"] = np.zeros((num_rows * source_length, MAX_WORD_CHARACTERS), np.int32)
            fields["character_BSW"][at] = _gather_characters(columns["character"], token)
        fields |= {
            name: fields[name].reshape(num_rows, source_length, *fields[name].shape[1:])
            for name in TOKEN_LEVEL_FIELDS & {*fields}
        }
    if "class" in columns:
        labels = columns["class"].flat[examples]
        field = "value_B" if labels.dtype == np.float32 else "class_B"
        fields[field] = np.full(num_rows, np.nan, np.float32) if field == "value_B" else np.full(num_rows, -1, np.int32)
        fields[field][row_index] = labels
    return Batch(**fields)


def _token_positions(
    column: Ragged, examples: np.ndarray, row_index: np.ndarray, num_rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where in a flat (rows x length) array the tokens of the examples lie, and which tokens of the column they are."""
    count = np.minimum(column.lengths[examples], length - 1)
    before = np.cumsum(count + 1) - (count + 1)
    start = row_index * length + before - before[np.searchsorted(row_index, row_index)]
    return concat_ranges(start, count), concat_ranges(column.offsets[examples], count)


def _gather_characters(characters: Ragged, token: np.ndarray) -> np.ndarray:
    """(tokens, WORD_LENGTH): the first characters of each, then 0."""
    ids, count = characters.gather(token, max_length=MAX_WORD_CHARACTERS)
    spelled = np.zeros((len(token), MAX_WORD_CHARACTERS), np.int32)
    spelled.reshape(-1)[concat_ranges(np.arange(len(token)) * MAX_WORD_CHARACTERS, count)] = ids
    return spelled


def _fill_rows(
    column: Ragged, examples: np.ndarray, row_index: np.ndarray, shape: tuple[int, int], special: SpecialIds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids + EOS, BOS + ids, and segment numbers from 1, each int32 of `shape` = (rows, length)."""
    num_rows, length = shape
    ids, count = column.gather(examples, max_length=length - 1)
    first_of_row = np.searchsorted(row_index, row_index)
    before = np.cumsum(count + 1) - (count + 1)
    start = row_index * length + before - before[first_of_row]
    ended, begun, segment = (np.zeros(num_rows * length, np.int32) for _ in range(3))
    at = concat_ranges(start, count)
    ended[at], ended[start + count] = ids, special.eos
    begun[at + 1], begun[start] = ids, special.start
    segment[concat_ranges(start, count + 1)] = np.repeat(np.arange(len(row_index)) - first_of_row + 1, count + 1)
    return ended.reshape(num_rows, length), begun.reshape(num_rows, length), segment.reshape(num_rows, length)
