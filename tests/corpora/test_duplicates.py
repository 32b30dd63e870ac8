"""Duplicates: the normal form, exact copies, the planted near copies of the design, chains, and the choice of one."""

import random
from dataclasses import replace

import numpy as np
import pytest

from jaxlm.corpora.document import Document
from jaxlm.corpora.duplicates import BAND, Duplicates, choose_kept, first_of_equal
from jaxlm.data.files import find_file
from jaxlm.data.sources.text import Documents


def documents(texts):
    return [Document(str(i), text) for i, text in enumerate(texts)]


def pairs_of(texts, step: Duplicates):
    signatures = np.stack([step.signature(document) for document in documents(texts)])
    keys = step.band_keys(signatures)
    bands = np.empty(keys.size, BAND)
    bands["key"], bands["document"] = keys.reshape(-1), np.repeat(np.arange(len(texts)), step.bands)
    bands.sort(order=("key", "document"))
    cut = len(texts) // 3  # as if of several parts
    parts = [bands[bands["document"] < cut], bands[bands["document"] >= cut], bands[:0]]
    parts[1]["document"] -= cut
    found = step.near_pairs(parts, [0, cut, len(texts)], signatures.__getitem__, np.ones(len(texts), bool))
    return {tuple(pair) for part in found for pair in part.tolist()}


def jaccard(a: str, b: str) -> float:
    def shingles(text):
        words = Document("", text).normal_words
        return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}

    one, other = shingles(a), shingles(b)
    return len(one & other) / len(one | other)


def test_normal_form():
    assert Document("", "Él  dijo: «1984, ¡NO!» naïve").normal_words == ["el", "dijo", "0", "no", "naive"]
    same = documents(["Hello, world 12!", "hello world\n7", "Héllo — World: 0"])
    assert len({document.digest for document in same}) == 1
    assert Document("", "hello worlds 7").digest != same[0].digest


def test_digests_and_signatures_are_fixed():
    """The same in every process, on every platform, with every seed of Python's own hashes."""
    document = Document("", "The quick brown fox jumps over the lazy dog.")
    assert document.digest.hex() == "5bfb7372bdb2f169ed8c800e5ee441e8"
    assert Duplicates().signature(document, seed=7)[:3].tolist() == [574981944, 689109625, 1391774882]


def test_short_texts_are_one_shingle():
    step = Duplicates()
    assert (step.signature(Document("", "Two words")) == step.signature(Document("", "two, words!"))).all()
    assert (step.signature(Document("", "Two words")) != step.signature(Document("", "two worlds"))).any()
    assert pairs_of(["a b c d", "A, b c d", "a b c e"], step) == {(0, 1)}


def edit(text: str, rate: float, draw: random.Random) -> str:
    """The text with some of its words replaced, dropped or doubled by others."""
    words, edited = text.split(), []
    for word in words:
        if draw.random() >= rate:
            edited.append(word)
            continue
        kind = draw.randrange(3)
        edited += [[draw.choice(words)], [], [word, draw.choice(words)]][kind]
    return " ".join(edited)


@pytest.fixture(scope="module")
def c4_texts():
    try:
        find_file("c4_sample/c4_demo.jsonl")
    except Exception:
        pytest.skip("needs c4_sample in $JAXLM_DATA")
    texts = list(Documents(("c4_sample/c4_demo.jsonl",), "json"))
    return [text for text in texts if len(text.split()) >= 50]


@pytest.mark.data
def test_planted_near_duplicates(c4_texts):
    """Recall within 0.04 of the theory at every rate of edits, and no pair of different documents."""
    assert len(c4_texts) == 273
    step, draw = Duplicates(), random.Random(0)
    for rate in (0.01, 0.03, 0.05):
        copies = [edit(text, rate, draw) for text in c4_texts]
        expected = np.mean([1 - (1 - jaccard(a, b) ** 8) ** 14 for a, b in zip(c4_texts, copies, strict=True)])
        found = pairs_of([*c4_texts, *copies], replace(step, verify=False))
        planted = {(i, i + len(c4_texts)) for i in range(len(c4_texts))}
        assert found <= planted, f"{rate}: wrong pairs {sorted(found - planted)}"
        recall = len(found) / len(planted)
        verified = pairs_of([*c4_texts, *copies], step)
        assert verified <= found
        print(f"edits {rate:.1%}: recall {recall:.3f}, theory {expected:.3f}, verified {len(verified) / 273:.3f}")
        assert abs(recall - expected) <= 0.04


def test_verify_cuts_chains():
    """A and B, B and C are near, A and C are not: the pairs of each; a pair far below the threshold is never one."""
    words = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400)]
    texts = [" ".join(words[i : i + 300]) for i in (0, 15, 40, 90)]
    coarse = Duplicates(bands=40, rows=4, verify=False)  # threshold 0.40
    assert pairs_of(texts, coarse) >= {(0, 1), (0, 2), (0, 3)}
    fine = pairs_of(texts, replace(coarse, bands=14, rows=8, verify=True))
    assert (0, 1) in fine and all(jaccard(texts[a], texts[b]) >= 0.6 for a, b in fine)


def test_choice_of_a_group():
    """By priority, then length, then id, whatever the order of the pairs."""
    pairs = np.array([[0, 1], [4, 1], [2, 3]])
    priority, length, ids = np.array([1, 0, 0, 0, 0, 0]), -np.array([9, 5, 6, 6, 7, 1]), np.array([1, 2, 4, 3, 5, 6])
    kept = choose_kept(6, pairs, (priority, length, ids))
    assert kept.tolist() == [4, 4, 3, 3, 4, 5]
    assert choose_kept(6, pairs[::-1, ::-1], (priority, length, ids)).tolist() == kept.tolist()
    assert choose_kept(2, np.zeros((0, 2), int), (priority[:2],)).tolist() == [0, 1]


def test_first_of_equal():
    assert first_of_equal(np.array([b"b", b"a", b"b", b"c"])).tolist() == [0, 1, 0, 3]
