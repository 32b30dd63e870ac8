"""Tokenizers of published models whose files are odd or damaged."""

from types import SimpleNamespace

import pytest

from jaxlm.data.tokenizers.base import SpecialIds
from jaxlm.data.tokenizers.pretrained import PretrainedSentencePiece, parse_tokenizer_json
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.errors import UserError


def test_half_surrogates_in_a_published_vocabulary_do_not_stop_it():
    pieces = SentencePiece(266).fit(["one two"] * 10).model
    vocab = ("", "<unk>", "</s>", ">>es<<", "one", "\ud800")
    tokenizer = PretrainedSentencePiece(pieces, pieces, 6, SpecialIds(pad=0, unk=1, eos=2), vocab)
    assert tokenizer.decode([[4, 5, 2]]) == ["one?"]


def test_a_panic_of_the_library_is_one_sentence(monkeypatch):
    """Rust's panics are no Exceptions."""
    tokenizers = pytest.importorskip("tokenizers")

    class PanicException(BaseException):
        pass

    def panic(content: str) -> None:
        raise PanicException("range end index 7 out of range")

    monkeypatch.setattr(tokenizers, "Tokenizer", SimpleNamespace(from_str=panic))
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read: range end index 7"):
        parse_tokenizer_json("{}")
