"""Words with their characters: in step with each other, stored like other tokenizers."""

import numpy as np
import pytest

from jaxlm.data.tokenizers.base import NUM_SPECIALS, UNK
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.data.tokenizers.simple import MAX_WORD_CHARS, WordsWithChars, truncate_word
from jaxlm.errors import UserError

TEXTS = ["The cat saw the cat", "a cat  <unk> naïve\u00a0day", "the end"]


def test_every_word_is_spelled():
    tokenizer = WordsWithChars().fit(TEXTS)
    texts = ["cat dog\tThe", "", "naïve ☃ <unk>"]
    rows, spelled = tokenizer.encode(texts), tokenizer.encode_chars(texts)
    words = [word for text in texts for word in text.split()]
    assert sum(map(len, rows)) == len(spelled) == len(words)
    assert tokenizer.decode(rows) == ["cat <unk> The", "", "naïve <unk> <unk>"]
    letters = ("", "?", "", "", *tokenizer.alphabet)
    for word, ids in zip(words, spelled, strict=True):
        assert "".join(letters[i] for i in ids) == "".join(c if c in tokenizer.alphabet else "?" for c in word)
        assert ids.dtype == np.int32
    assert rows[0][1] == UNK and len(spelled[1]) == 3
    assert tokenizer.char_vocab_size == NUM_SPECIALS + len(set("".join("".join(TEXTS).split())))


def test_lowercase_folds_words_and_not_characters():
    tokenizer = WordsWithChars(lowercase=True).fit(TEXTS)
    (row,), spelled = tokenizer.encode(["The the THE"]), tokenizer.encode_chars(["The the THE"])
    assert len(set(row)) == 1 and row[0] != UNK
    assert not np.array_equal(spelled[0], spelled[1])


def test_sizes_and_rare_words():
    tokenizer = WordsWithChars(vocab_size=6, char_vocab_size=7).fit(TEXTS)
    assert (tokenizer.vocab_size, tokenizer.char_vocab_size, tokenizer.symbols) == (6, 7, ("cat", "the"))
    assert WordsWithChars(min_count=2).fit(TEXTS).symbols == ("cat", "the")
    with pytest.raises(UserError, match="no text"):
        WordsWithChars().fit(["", "  "])


def test_long_words_keep_both_ends():
    word = "".join(map(chr, range(ord("a"), ord("a") + 26)))
    assert truncate_word(word) == "abcdefghstuvwxyz" and len(truncate_word(word)) == MAX_WORD_CHARS
    assert truncate_word(word[:MAX_WORD_CHARS]) == word[:MAX_WORD_CHARS]
    assert len(WordsWithChars().fit([word]).encode_chars([word * 3])[0]) == MAX_WORD_CHARS


def test_stored_and_read_back(tmp_path):
    tokenizer = WordsWithChars(vocab_size=8, lowercase=True).fit(TEXTS)
    tokenizer.save(tmp_path)
    found = load_tokenizer(tmp_path)
    assert found == tokenizer and found.fingerprint == tokenizer.fingerprint
    assert WordsWithChars(vocab_size=8).fit(TEXTS).fingerprint != tokenizer.fingerprint
    with pytest.raises(TypeError, match="list of texts"):
        tokenizer.encode_chars("one text")
