"""The ids of a word inside a text: for each kind of tokenizer those of Transformers with `is_split_into_words`."""

import io

import numpy as np
import pytest
import sentencepiece

from jaxlm.data.tokenizers.base import SpecialIds, encode_words
from jaxlm.data.tokenizers.pretrained import FastTokenizer
from jaxlm.data.tokenizers.sentencepiece import SentencePiece, SentencePieceTokenizer
from jaxlm.data.tokenizers.simple import Bytes, Characters, Words
from jaxlm.errors import UserError

CORPUS = [
    "the old baker sells warm bread near the door",
    "an older door, 42 breads and 3 bakers",
    "don't tell the baker",
] * 3
WORDS = "the old baker sells 42 breads, don't tell naïve 東".split()


def _train(kind: str):
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    whole = (
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    unigram = (
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False),
    )
    piece = (
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer(vocab_size=90, special_tokens=["<unk>"], show_progress=False),
    )
    merges = (
        models.BPE(unk_token="<unk>"),
        trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>"], show_progress=False),
    )
    model, trainer = {
        "byte-level": whole,
        "byte-level with a space": whole,
        "WordPiece": piece,
        "Metaspace": unigram,
    }.get(kind, merges)
    tokenizer = tokenizers.Tokenizer(model)
    if kind.startswith("byte-level"):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind.endswith("space"))
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "WordPiece":
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif kind == "Metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    else:  # as Llama's converted files
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.mark.parametrize("kind", ["byte-level", "byte-level with a space", "WordPiece", "Metaspace", "Llama"])
def test_words_are_encoded_as_transformers_encodes_them(kind):
    transformers = pytest.importorskip("transformers")
    tokenizer = _train(kind)
    ours = FastTokenizer(tokenizer.to_str(), tokenizer.get_vocab_size(), SpecialIds(0, 0, None, 0, 0, (0,)))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    if kind == "byte-level":
        from tokenizers import pre_tokenizers

        theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    encoded = theirs(WORDS, is_split_into_words=True, add_special_tokens=False)
    expected = [[] for _ in WORDS]
    for index, word in zip(encoded["input_ids"], encoded.word_ids(), strict=True):
        expected[word].append(index)
    assert [ids.tolist() for ids in encode_words(ours, WORDS)] == expected


@pytest.mark.parametrize(
    "config", [SentencePiece(330, "bpe"), Characters(), Bytes(), Words()], ids=lambda c: type(c).__name__
)
def test_words_together_are_the_text(config):
    tokenizer = config.fit(CORPUS)
    text = "the " + " ".join(WORDS)
    rows = encode_words(tokenizer, WORDS)
    np.testing.assert_array_equal(np.concatenate([*tokenizer.encode(["the"]), *rows]), tokenizer.encode([text])[0])


def test_a_tokenizer_that_drops_the_first_space():
    """SentencePiece without a mark before the text and without extra spaces (Gemma's options with T5's)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=90, model_type="bpe", add_dummy_prefix=False,
        minloglevel=3,
    )  # fmt: skip
    tokenizer = SentencePieceTokenizer(model.getvalue())
    together = np.concatenate([*tokenizer.encode(["a"]), *encode_words(tokenizer, WORDS[:4])])
    np.testing.assert_array_equal(together, tokenizer.encode(["a the old baker sells"])[0])


def test_a_file_that_draws_its_pieces_gives_one_encoding():
    """BPE with dropout (Provilkov et al. 2020) is for training: ids are a function of the text."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.9)
    ours = FastTokenizer(tokenizers.Tokenizer(model).to_str(), 3, SpecialIds(None, None, None, 0, 0, (0,)))
    assert [row.tolist() for row in ours.encode(["abab"] * 8)] == [[2, 2]] * 8


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel", "WordPiece"])
def test_an_unknown_word_without_an_unknown_id_is_refused(kind):
    tokenizers = pytest.importorskip("tokenizers")
    make = {
        "Unigram": lambda: tokenizers.models.Unigram([("a", -1.0)], None),
        "WordLevel": lambda: tokenizers.models.WordLevel({"a": 0}, unk_token="[UNK]"),
        "WordPiece": lambda: tokenizers.models.WordPiece({"a": 0}, unk_token="[UNK]"),
    }
    ours = FastTokenizer(tokenizers.Tokenizer(make[kind]()).to_str(), 1, SpecialIds(None, None, None, 0, 0, (0,)))
    assert [row.tolist() for row in ours.encode(["a"])] == [[0]]
    with pytest.raises(UserError, match="tokenizer.json cannot encode a text: .*([Mm]issing)"):
        ours.encode(["a", "z"])
