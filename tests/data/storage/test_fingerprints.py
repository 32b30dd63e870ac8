"""The fingerprint of a training split."""

import numpy as np
import pytest

from jaxlm.data.ragged import ConcatArray, Ragged
from jaxlm.data.storage import token_cache
from jaxlm.data.storage.token_cache import fingerprints

IDS = np.arange(1000, dtype=np.int32)
ENDS = np.array([0, 10, 400, 1000])


def of(ids=IDS, ends=ENDS):
    return fingerprints({"target": Ragged(ids, ends)})["target"]


@pytest.mark.parametrize("run", [4096, 2], ids=["whole", "sampled"])
def test_it_is_of_the_ids_and_of_where_rows_end(run, monkeypatch):
    monkeypatch.setattr(token_cache, "SAMPLE_LENGTH", run)
    fingerprint = of()
    assert (fingerprint["rows"], fingerprint["ids"]) == (3, 1000)
    assert fingerprint == of(IDS.astype(np.uint16)) == of(ConcatArray([IDS[:300], IDS[300:]]))
    assert of(ends=np.array([0, 11, 400, 1000]))["digest"] != fingerprint["digest"]
    assert of(IDS[::-1].copy())["digest"] != fingerprint["digest"]
    assert of(np.where(IDS < 50, IDS, IDS + 1))["digest"] != fingerprint["digest"]


def test_a_short_column_is_looked_at_whole():
    changed = IDS.copy()
    changed[777] += 1
    assert of(changed) != of()
    assert of(np.zeros(0, np.int32), np.zeros(1, np.int64))["ids"] == 0
