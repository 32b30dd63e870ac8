"""Masking: how many tokens, which ones, their replacements, and that a batch depends only on its number."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from jaxlm.data.pretraining.masked_lm import MaskedLMRows, Masking
from jaxlm.data.pretraining.token_types import ENDS_SENTENCE, IS_TEXT, STARTS_WORD, mask_token_id, token_flag_columns
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import BOS, EOS, NUM_SPECIALS, UNK
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.data.tokenizers.simple import Bytes, Characters, Words
from jaxlm.errors import UserError

VOCAB, MASK = 40, 4
RNG = np.random.default_rng(0)
KIND = np.where(np.arange(VOCAB) <= MASK, 0, IS_TEXT + STARTS_WORD * (np.arange(VOCAB) % 3 == 0)).astype(np.uint8)
KIND[9] |= ENDS_SENTENCE
TABLE = {"piece": Ragged(KIND, np.arange(VOCAB + 1)), "symbol": Ragged.from_rows([[MASK]])}
DOCUMENTS = [RNG.integers(MASK + 1, VOCAB, size) for size in (300, 3, 0, 700, 41, 120, 1, 260)]
COLUMNS = TABLE | {"target": Ragged.from_rows(DOCUMENTS)}


def unmasked(batch):
    """The rows before masking."""
    return np.where(batch.token_label_BS >= 0, batch.token_label_BS, batch.source_BS)


def test_statistics_of_the_mask():
    """15 % of the text of each row, to the token; of these 80 / 10 / 10 within four standard deviations."""
    ids_BS = RNG.integers(1, VOCAB, (400, 64))
    source_BS, label_BS = Masking().mask_tokens(ids_BS, ids_BS > -1, KIND, MASK, RNG.random((3, 400, 64)))
    masked_positions, text = label_BS >= 0, KIND[ids_BS] > 0
    np.testing.assert_array_equal(masked_positions.sum(1), np.round(0.15 * text.sum(1)))
    assert not (masked_positions & ~text).any(), "a special id was masked"
    np.testing.assert_array_equal(np.where(masked_positions, label_BS, source_BS), ids_BS)
    count = masked_positions.sum()
    masked, same = source_BS[masked_positions] == MASK, source_BS[masked_positions] == ids_BS[masked_positions]
    swapped = source_BS[masked_positions][~masked & ~same]
    words = (KIND > 0).sum()
    for actual, share in ((masked.sum(), 0.8), (same.sum(), 0.1 + 0.1 / words), (len(swapped), 0.1 * (1 - 1 / words))):
        assert abs(actual - count * share) < 4 * np.sqrt(count * share * (1 - share))
    assert (KIND[swapped] & IS_TEXT).all() and len(np.unique(swapped)) > 0.9 * words
    place = masked_positions.sum(0) / text.sum(0)
    assert abs(place - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 350), "every place has the same chance"


def test_the_fractions_are_those_of_the_configuration():
    ids_BS = RNG.integers(MASK + 1, VOCAB, (8, 50))
    for masked, swapped in ((1.0, 0.0), (0.0, 0.0)):
        source_BS, label_BS = Masking(0.5, masked, swapped).mask_tokens(
            ids_BS, ids_BS > -1, KIND, MASK, RNG.random((3, 8, 50))
        )
        assert ((label_BS >= 0).sum(1) == 25).all()
        assert (source_BS[label_BS >= 0] == (MASK if masked else ids_BS[label_BS >= 0])).all()
    assert (
        (Masking(0.01).mask_tokens(ids_BS, ids_BS > -1, KIND, MASK, RNG.random((3, 8, 50)))[1] >= 0).sum(1) == 1
    ).all()


def test_whole_words_are_hidden_whole():
    """By brute force: the words of each row, masked or not; at most 15 %, and no other word would fit."""
    ids_BS = RNG.integers(1, VOCAB, (200, 64))
    _, label_BS = Masking(whole_word_mask=True).mask_tokens(ids_BS, ids_BS > -1, KIND, MASK, RNG.random((3, 200, 64)))
    shares = []
    for ids, label in zip(ids_BS, label_BS, strict=True):
        words, before = [], False
        for at, kind in enumerate(KIND[ids]):
            if kind & IS_TEXT and (kind & STARTS_WORD or not before):
                words.append([])
            before = bool(kind & IS_TEXT)
            if before:
                words[-1].append(at)
        masked_positions = [all(label[word] >= 0) for word in words]
        assert [any(label[word] >= 0) for word in words] == masked_positions
        text, count = sum(map(len, words)), int((label >= 0).sum())
        assert count <= max(round(0.15 * text), max(map(len, words))) and count > 0
        shares.append(count / text)
    assert 0.1 < np.mean(shares) <= 0.15


@pytest.mark.parametrize("pairs", [False, True])
def test_a_batch_is_a_function_of_its_number(pairs):
    """The same from a new object in any order; another one in the next epoch and under another seed."""
    config = MaskedLMRows(length=32, rows=8, next_sentence=pairs)
    one, again, other = config.batches(COLUMNS, 3), config.batches(COLUMNS, 3), config.batches(COLUMNS, 4)
    for k in (7, 0, 40):
        for name in ("source_BS", "token_label_BS", "source_valid_BS"):
            np.testing.assert_array_equal(getattr(one[k], name), getattr(again[k], name))
    assert (one[0].token_label_BS != other[0].token_label_BS).any()
    assert (one[0].token_label_BS != one[one.batches_per_epoch].token_label_BS).any()
    assert one.row_multiple == 8 and one.statistics()["tokens"] <= config.tokens


def test_rows_of_joined_documents_hold_every_token():
    """BOS, a window, EOS; an epoch has the whole text before masking."""
    stream = [i for text in DOCUMENTS for i in [*text, EOS]]
    batches, seen = MaskedLMRows(length=32, rows=4).batches(COLUMNS, 1), np.zeros(len(stream), int)
    for batch in (batches[k] for k in range(batches.batches_per_epoch)):
        assert batch.class_B is None and batch.token_type_BS is None
        for row, valid in zip(unmasked(batch), batch.source_valid_BS, strict=True):
            ids = row[valid].tolist()
            assert ids[0] == BOS and ids[-1] == EOS and not row[~valid].any()
            if len(ids) > 8:
                (start,) = [at for at in range(len(stream)) if stream[at : at + len(ids) - 2] == ids[1:-1]]
                seen[start : start + len(ids) - 2] += 1
    assert (seen[8:-8] >= 1).all()


def test_pairs_that_follow_and_pairs_that_do_not():
    """Half of the second spans follow the first ones; the others start a sentence of another document."""
    config = MaskedLMRows(length=32, rows=16, next_sentence=True, masking=Masking(0.15))
    batches, labels, begins = config.batches(COLUMNS, 0), [], {0: [], 1: []}
    home = {tuple(text[i : i + 2]): d for d, text in enumerate(DOCUMENTS) for i in range(len(text) - 1)}
    count = Counter(tuple(text[i : i + 2]) for text in DOCUMENTS for i in range(len(text) - 1))
    checked = {0: 0, 1: 0}
    for batch in map(batches.__getitem__, range(20)):
        for ids, kinds, elsewhere in zip(unmasked(batch), batch.token_type_BS, batch.class_B, strict=True):
            first, second = np.flatnonzero(ids == EOS)
            assert ids[0] == BOS and not ids[second + 1 :].any() and not kinds[second + 1 :].any()
            assert (kinds[: second + 1] == (np.arange(second + 1) > first)).all()
            a, b = ids[1:first], ids[first + 1 : second]
            assert len(a) and len(b) and len(a) + len(b) <= 29
            labels.append(elsewhere)
            if not elsewhere:
                joined = np.concatenate([a, b]).tolist()
                assert any(joined == t[i : i + len(joined)].tolist() for t in DOCUMENTS for i in range(len(t)))
            begins[int(elsewhere)].append(KIND[b[0]] & STARTS_WORD > 0)
            pairs = [[tuple(x[i : i + 2]) for i in range(len(x) - 1)] for x in (a, b)]
            places = [{home[pair] for pair in side if count[pair] == 1} for side in pairs]
            if all(len(place) == 1 for place in places):
                checked[int(elsewhere)] += 1
                assert (places[0] != places[1]) == bool(elsewhere)
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / np.sqrt(len(labels)) and min(checked.values()) > 20
    assert np.mean(begins[0]) > 0.9 and np.mean(begins[1]) > 0.9


def test_pairs_need_two_documents():
    with pytest.raises(UserError, match="two documents or more"):
        MaskedLMRows(length=32, next_sentence=True).batches(TABLE | {"target": Ragged.from_rows([DOCUMENTS[0], []])})


@pytest.mark.parametrize(
    "arguments, message",
    [({"mlm_probability": 0.0}, "mlm_probability = 0.0"), ({"mask_replace_prob": 0.95}, "together 1 at most")],
)
def test_shares_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        replace(Masking(), **arguments)


TEXTS = ["the cats sat . The dog barked!", "no dogs , no cats ?"] * 20


def test_flags_of_token_types():
    """The marks of words and sentences, by tokenizers that split text in as many ways."""
    words = Words(50).fit(TEXTS)
    kind_V = token_flag_columns(words, [""])["piece"].flat
    assert (
        not kind_V[:NUM_SPECIALS].any()
        and (kind_V[NUM_SPECIALS:] & IS_TEXT).all()
        and (kind_V[NUM_SPECIALS:] & STARTS_WORD).all()
    )
    assert {words.symbols[i - NUM_SPECIALS] for i in np.flatnonzero(kind_V & ENDS_SENTENCE)} == {".", "barked!", "?"}
    assert token_flag_columns(words, [""])["symbol"].flat.tolist() == [UNK]
    pieces = SentencePiece(28, byte_fallback=False, user_defined_symbols=("[MASK]", "<x>")).fit(TEXTS)
    columns = token_flag_columns(pieces, ["[MASK]", "<x>"])
    kind_V, symbols = columns["piece"].flat, columns["symbol"].flat.tolist()
    assert [pieces._processor.id_to_piece(i) for i in symbols] == ["[MASK]", "<x>"] and not kind_V[symbols].any()
    for index in np.flatnonzero(kind_V & IS_TEXT).tolist():
        piece = pieces._processor.id_to_piece(index)
        assert bool(kind_V[index] & STARTS_WORD) == piece.startswith("\u2581")
        assert bool(kind_V[index] & ENDS_SENTENCE) == piece.endswith((".", "!", "?"))
    for config, text in ((Characters(), " .a"), (Bytes(), " .a")):
        tokenizer = config.fit(TEXTS)
        kinds = token_flag_columns(tokenizer, [""])["piece"].flat[tokenizer.encode([text])[0]]
        assert kinds.tolist() == [IS_TEXT + STARTS_WORD, IS_TEXT + ENDS_SENTENCE, IS_TEXT]


@pytest.mark.parametrize("config", [Words(50), SentencePiece(26, byte_fallback=False), Bytes()])
def test_a_symbol_that_is_none(config):
    with pytest.raises(UserError, match=r"no id for '\[MASK\]'.*--user-defined-symbol"):
        mask_token_id(config.fit(TEXTS), "[MASK]")
