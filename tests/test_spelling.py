"""Words with their characters: in step with each other, stored like other tokenizers."""

import numpy as np
import pytest

from jaxlm.data.spelling import LONGEST, SpelledWords, elide
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.data.vocabulary import SPECIALS, UNK
from jaxlm.errors import UserError

TEXTS = ["The cat saw the cat", "a cat  <unk> naïve\u00a0day", "the end"]


def test_every_word_is_spelled():
    tokenizer = SpelledWords().fit(TEXTS)
    texts = ["cat dog\tThe", "", "naïve ☃ <unk>"]
    rows, spelled = tokenizer.encode(texts), tokenizer.spell(texts)
    words = [word for text in texts for word in text.split()]
    assert sum(map(len, rows)) == len(spelled) == len(words)
    assert tokenizer.decode(rows) == ["cat <unk> The", "", "naïve <unk> <unk>"]
    letters = ("", "?", "", "", *tokenizer.alphabet)
    for word, ids in zip(words, spelled, strict=True):
        assert "".join(letters[i] for i in ids) == "".join(c if c in tokenizer.alphabet else "?" for c in word)
        assert ids.dtype == np.int32
    assert rows[0][1] == UNK and len(spelled[1]) == 3
    assert tokenizer.characters == SPECIALS + len(set("".join("".join(TEXTS).split())))


def test_lowercase_folds_words_and_not_characters():
    tokenizer = SpelledWords(lowercase=True).fit(TEXTS)
    (row,), spelled = tokenizer.encode(["The the THE"]), tokenizer.spell(["The the THE"])
    assert len(set(row)) == 1 and row[0] != UNK
    assert not np.array_equal(spelled[0], spelled[1])


def test_sizes_and_rare_words():
    tokenizer = SpelledWords(size=6, characters=7).fit(TEXTS)
    assert (tokenizer.size, tokenizer.characters, tokenizer.symbols) == (6, 7, ("cat", "the"))
    assert SpelledWords(least=2).fit(TEXTS).symbols == ("cat", "the")
    with pytest.raises(UserError, match="no text"):
        SpelledWords().fit(["", "  "])


def test_long_words_keep_both_ends():
    word = "".join(map(chr, range(ord("a"), ord("a") + 26)))
    assert elide(word) == "abcdefghstuvwxyz" and len(elide(word)) == LONGEST
    assert elide(word[:LONGEST]) == word[:LONGEST]
    assert len(SpelledWords().fit([word]).spell([word * 3])[0]) == LONGEST


def test_stored_and_read_back(tmp_path):
    tokenizer = SpelledWords(size=8, lowercase=True).fit(TEXTS)
    tokenizer.save(tmp_path)
    found = load_tokenizer(tmp_path)
    assert found == tokenizer and found.fingerprint == tokenizer.fingerprint
    assert SpelledWords(size=8).fit(TEXTS).fingerprint != tokenizer.fingerprint
    with pytest.raises(TypeError, match="list of texts"):
        tokenizer.spell("one text")
