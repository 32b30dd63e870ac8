"""From text to running batches: the ids on disk, the same batches from any threads and workers, evaluation order."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxlm.data.batching.bucketing import Buckets, Packing
from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.batching.loader import DataLoader
from jaxlm.data.ragged import Ragged
from jaxlm.data.storage import token_cache
from jaxlm.data.storage.token_cache import encode_pairs
from jaxlm.errors import UserError

EOS = 3


class Letters:
    """A tokenizer of lower-case letters that counts the texts it encodes."""

    def __init__(self, vocab_size=30, fingerprint="letters"):
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint
        self.texts = 0

    def encode(self, texts):
        self.texts += len(texts)
        return [np.array([ord(letter) - 93 for letter in text], np.int32) for text in texts]

    def side(self, name):
        return self


PAIRS = [("ab" * (i % 7), "cde" * (i % 5) + "z") for i in range(300)]
COLUMNS = encode_pairs(PAIRS, Letters())
BATCHES = Buckets(tokens=256, max_shapes=4).batches(COLUMNS, seed=9)


def same(one, other) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)]
    return all(
        (a is b is None) or (type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)) for a, b in pairs
    )


# --- the store of ids


@pytest.mark.parametrize("size, dtype", [(30, "<u2"), (2**16, "<u2"), (2**16 + 1, "<u4")])
def test_ids_on_disk_and_in_memory_are_the_same(tmp_path, monkeypatch, size, dtype):
    monkeypatch.setattr(token_cache, "TOKENIZE_BATCH_SIZE", 64)
    stored = encode_pairs(PAIRS, Letters(size), tmp_path / "train")
    in_memory = encode_pairs(PAIRS, Letters(size))
    for side, name in enumerate(("source", "target")):
        assert isinstance(stored[name].flat, np.memmap) and not isinstance(in_memory[name].flat, np.memmap)
        assert stored[name].flat.dtype == in_memory[name].flat.dtype == np.dtype(dtype)
        assert len(stored[name]) == 300
        for i, pair in enumerate(PAIRS):
            expected = [ord(letter) - 93 for letter in pair[side]]
            assert stored[name][i].tolist() == in_memory[name][i].tolist() == expected
        assert stored[name].lengths.tolist() == [len(pair[side]) for pair in PAIRS]
    assert os.listdir(tmp_path) == ["train"]


def test_a_stored_folder_is_used_again_only_for_the_same_text_and_tokenizer(tmp_path):
    folder = tmp_path / "train"
    encode_pairs(PAIRS, Letters(), folder)
    again = Letters()
    encode_pairs(PAIRS, again, folder)
    assert again.texts == 0
    for pairs, tokenizer in [
        (PAIRS[:-1], Letters()),
        ([*PAIRS[:-1], ("a", "b")], Letters()),
        ([(target, source) for source, target in PAIRS], Letters()),
        (PAIRS, Letters(fingerprint="others")),
    ]:
        columns = encode_pairs(pairs, tokenizer, folder)
        assert tokenizer.texts == 2 * len(pairs)
        assert columns["target"][0].tolist() == [ord(letter) - 93 for letter in pairs[0][1]]
    assert os.listdir(tmp_path) == ["train"]


def test_text_cannot_move_between_the_sides_unnoticed(tmp_path):
    encode_pairs([("ab", "c"), ("d", "e")], Letters(), tmp_path / "x")
    moved = Letters()
    encode_pairs([("a", "bc"), ("d", "e")], moved, tmp_path / "x")
    assert moved.texts == 4


def test_what_a_killed_run_left_is_ignored(tmp_path):
    folder = tmp_path / "train"

    class Stops(Letters):
        def encode(self, texts):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_pairs(PAIRS, Stops(), folder)
    assert os.listdir(tmp_path) == []
    encode_pairs(PAIRS, Letters(), folder)
    for name, content in [("source.ids", b"\0"), ("columns.json", b"{"), ("target.ends.npy", b"")]:
        (folder / name).write_bytes(content)
        assert encode_pairs(PAIRS, Letters(), folder)["source"][1].tolist() == [4, 5]
    content = (folder / "source.ids").read_bytes()
    (folder / "source.ids").write_bytes(bytes([content[0] ^ 1]) + content[1:])  # of the same size
    assert encode_pairs(PAIRS, Letters(), folder)["source"][1].tolist() == [4, 5]
    (folder / "target.ids").unlink()
    assert encode_pairs(PAIRS, Letters(), folder)["target"][0].tolist() == [29]
    assert os.listdir(tmp_path) == ["train"]


def test_blank_texts_are_rows_of_no_ids(tmp_path):
    for folder in (None, tmp_path / "blank"):
        columns = encode_pairs([("", ""), ("", "")], Letters(), folder)
        assert columns["source"].lengths.tolist() == [0, 0]
        assert columns["source"][1].tolist() == []


def test_no_pairs(tmp_path):
    for folder in (None, tmp_path / "none"):
        with pytest.raises(UserError, match="the data set is empty: list gave no text"):
            encode_pairs([], Letters(), folder)
    assert os.listdir(tmp_path) == []


def test_rows_of_a_ragged():
    rows = Ragged.from_rows([[5, 6], [], [7]])
    assert [rows[i].tolist() for i in (0, 1, 2, -1)] == [[5, 6], [], [7], [7]]
    flat, lengths = rows.gather(np.array([2, 0, 1, 0]), max_length=1)
    assert (flat.tolist(), lengths.tolist()) == ([7, 5, 5], [1, 1, 0, 1])
    with pytest.raises(IndexError, match="row 3 of 3"):
        rows[3]


# --- the pipeline


def assert_no_threads_left():
    """Threads end on their own shortly after `close`. Grain keeps one pool of daemons for shared memory."""
    deadline = time.time() + 5
    while any(not t.daemon for t in threading.enumerate() if t is not threading.main_thread()):
        assert time.time() < deadline, threading.enumerate()
        time.sleep(0.01)


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("start", [0, 1000])
def test_any_number_of_threads_gives_the_same_batches(start, threads):
    with DataLoader(BATCHES, start=start, num_threads=threads, prefetch=3) as pipeline:
        for k in range(start, start + 30):
            assert same(next(pipeline), BATCHES[k])
    assert_no_threads_left()
    with pytest.raises(ValueError, match="closed"):
        next(pipeline)
    pipeline.close()


def test_packed_batches_run_too():
    batches = Packing(length=32, tokens=256).batches(COLUMNS)
    with DataLoader(batches) as pipeline:
        assert all(same(next(pipeline), batches[k]) for k in range(40))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_fault_in_a_batch_reaches_the_reader(threads):
    class Broken:
        def __getitem__(self, k):
            if k == 3:
                raise OSError("disk gone")
            return BATCHES[k]

    with DataLoader(Broken(), num_threads=threads) as pipeline:
        for _ in range(3):
            next(pipeline)
        with pytest.raises(OSError, match="disk gone"):
            next(pipeline)
    assert_no_threads_left()


SCRIPT = """
import dataclasses, sys, threading
from pathlib import Path
import numpy as np
from jaxlm.data.batching.loader import DataLoader
from jaxlm.data.ragged import Ragged
from jaxlm.data.storage.token_cache import encode_pairs
from tests.data.batching.test_loader import BATCHES, PAIRS, Letters, same

if __name__ == "__main__":
    folder, threads, workers, close = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "close"
    columns = encode_pairs(PAIRS, Letters(), Path(folder))
    batches = dataclasses.replace(BATCHES, columns=columns)
    pipeline = DataLoader(batches, start=7, num_threads=threads, num_workers=workers)
    assert all(same(next(pipeline), BATCHES[k]) for k in range(7, 27))
    if close:
        pipeline.close()
    print("done")
"""


def run_script(tmp_path, threads, workers, close):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [str(tmp_path / "ids"), str(threads), str(workers), "close" if close else "leave"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(Path(__file__).resolve().parents[up]) for up in (2, 3)),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-W", "error", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_pipeline_that_nobody_closed_does_not_disturb_the_exit(tmp_path):
    run_script(tmp_path, threads=2, workers=0, close=False)


@pytest.mark.slow
@pytest.mark.parametrize("close", [True, False])
def test_workers_give_the_same_batches_and_leave_quietly(tmp_path, close):
    """The worker processes map the ids on disk themselves."""
    run_script(tmp_path, threads=1, workers=2, close=close)


def test_a_stored_column_travels_as_a_file_name(tmp_path):
    import pickle

    pairs = [("a" * 1000, "b")] * 100
    column = encode_pairs(pairs, Letters(), tmp_path / "big")["source"]
    content = pickle.dumps(column)
    assert len(content) < 3000 < column.flat.nbytes
    assert np.array_equal(pickle.loads(content)[99], column[99])


# --- evaluation order


@pytest.mark.parametrize("count", [1, 7, 64, 300])
def test_every_row_once_and_back_in_its_place(count):
    columns = {name: Ragged(column.flat, column.offsets[: count + 1]) for name, column in COLUMNS.items()}
    rows_seen: dict[int, tuple[list[int], list[int]]] = {}
    shapes = set()
    for row_B, batch in eval_batches(columns, tokens=512, divisor=3):
        shapes.add(batch.label_BT.shape)
        assert batch.label_BT.shape[0] % 24 == 0 and len(row_B) == len(batch.label_BT)
        for place, row in enumerate(row_B):
            source = batch.source_BS[place][batch.source_valid_BS[place]].tolist()
            label = batch.label_BT[place][batch.target_valid_BT[place]].tolist()
            if row < 0:
                assert (source, label) == ([EOS], [])
            else:
                assert row not in rows_seen
                rows_seen[row] = (source, label)
    assert len(shapes) <= 5
    assert sorted(rows_seen) == list(range(count))
    for i in range(count):
        expected = tuple([*columns[name][i].tolist(), EOS] for name in ("source", "target"))
        assert rows_seen[i] == expected


def test_sources_alone_blank_lines_and_long_lines():
    columns = {"source": Ragged.from_rows([[5] * 40, [], [6], [7] * 3])}
    ((row_B, batch),) = eval_batches(columns, max_length=20)
    assert batch.target_BT is None and batch.source_BS.shape == (8, 20)
    rows = {row: batch.source_BS[i][batch.source_valid_BS[i]].tolist() for i, row in enumerate(row_B) if row >= 0}
    assert rows == {0: [5] * 19 + [EOS], 1: [EOS], 2: [6, EOS], 3: [7] * 3 + [EOS]}
    assert list(eval_batches({"source": Ragged.from_rows([])})) == []


def test_long_rows_keep_to_the_budget_as_far_as_the_row_multiple_allows():
    columns = {"source": Ragged.from_rows([[5] * n for n in [2000, *range(1, 400)]])}
    batches = list(eval_batches(columns, tokens=4096))
    assert batches[0][1].source_BS.shape[0] == 8
    assert all(batch.source_BS.size <= 4096 for _, batch in batches[1:])
    assert sum(np.sum(row_B >= 0) for row_B, _ in batches) == 400
    assert len({batch.source_BS.shape for _, batch in batches}) <= 16
