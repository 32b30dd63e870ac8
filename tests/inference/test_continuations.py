"""The text of ids that continue a prompt is what they add to it, for every kind of tokenizer, also as a stream."""

import re

import jax
import numpy as np
import pytest

from jaxlm.data.tokenizers.base import SpecialIds
from jaxlm.data.tokenizers.pretrained import FastTokenizer, PretrainedSentencePiece
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.data.tokenizers.simple import Bytes, Characters, Words, WordsWithChars
from jaxlm.decode.sampling import Sampler
from jaxlm.grammar.constraint import regex
from jaxlm.inference.base import TrainedModel
from jaxlm.inference.generate import GenerationDefaults, GenerationRequest, draw_samples
from jaxlm.inference.text_stream import ContinuationDecoder, TextStream
from jaxlm.models.properties import dummy_batch
from jaxlm.models.rnn_lm import RecurrentLM
from jaxlm.nn.rnn.cells import LSTM
from jaxlm.nn.rnn.layers import Recurrent

TEXTS = ["the old baker sells warm bread", "nobody knows where the key is", "año tras año, día tras día"]
PIECES = SentencePiece(vocab_size=288).fit(TEXTS * 3)
OWN = {
    "bytes": Bytes().fit(),
    "characters": Characters().fit(TEXTS),
    "words": Words().fit(TEXTS),
    "spelled words": WordsWithChars().fit(TEXTS),
    "pieces": PIECES,
    "pieces, spaces removed": SentencePiece(vocab_size=288, model_type="bpe", remove_extra_whitespaces=True).fit(
        TEXTS * 3
    ),
    "published pieces": PretrainedSentencePiece(PIECES.model, PIECES.model, 288, SpecialIds()),
}


def fast(kind: str) -> FastTokenizer:
    tokenizers = pytest.importorskip("tokenizers")
    made = {
        "byte-level": tokenizers.ByteLevelBPETokenizer,
        "word pieces": lambda: tokenizers.BertWordPieceTokenizer(strip_accents=False),
        "metaspace": tokenizers.SentencePieceBPETokenizer,
    }[kind]()
    made.train_from_iterator(TEXTS * 3, vocab_size=288, special_tokens=["<s>", "[UNK]", "</s>"], show_progress=False)
    special = SpecialIds(pad=0, unk=1, bos=0, eos=2, start=0, end_ids=(2,))
    return FastTokenizer(made.to_str(), made.get_vocab_size(), special)


@pytest.mark.parametrize("name", [*OWN, "byte-level", "word pieces", "metaspace"])
def test_prompt_and_continuation_are_the_whole_text(name):
    """Cut anywhere, and pushed id by id."""
    tokenizer = OWN.get(name) or fast(name)
    for ids in map(np.ndarray.tolist, tokenizer.encode(TEXTS)):
        whole = tokenizer.decode([ids])[0]
        for cut in range(len(ids) + 1):
            decoder = ContinuationDecoder(tokenizer, [tokenizer.special.start, *ids[:cut]])
            if not whole.startswith(decoder.prompt_text):  # the cut is inside a character
                continue
            text = decoder.decode([ids[cut:]])[0]
            assert decoder.prompt_text + text == whole
            stream = TextStream(decoder)
            pieces = [stream.push(ids[cut : at + 1], last=at + 1 == len(ids)) for at in range(cut, len(ids))]
            assert "".join(pieces) == stream.text == text


def test_samples_continue_the_prompt():
    """A rule holds for the text that is added, the space before its first word included; a stream shows the same."""
    size = PIECES.vocab_size
    model = RecurrentLM(size, 8, Recurrent(LSTM(8)))
    trained = TrainedModel(model, model.init(jax.random.key(0), dummy_batch())["params"], PIECES)
    prompts = ["the old baker", ""]
    pattern = " ?(sells|warm)( [a-z]{1,3})?"
    rule = GenerationRequest(Sampler(2.0), num_samples=3, max_tokens=12, constraint=regex(pattern))
    texts = [sample.text for sample in draw_samples(trained, prompts, rule)]
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert any(text[0] == " " for text in texts[:3])
    spaced = GenerationRequest(Sampler(2.0), num_samples=3, max_tokens=12, constraint=regex(" sells"))
    assert {sample.text for sample in draw_samples(trained, prompts[:1], spaced)} == {" sells"}
    prompt_size = 1 + len(PIECES.encode(prompts[:1])[0])
    for length in (prompt_size + 3, prompt_size - 2):  # a long prompt is cut, and half of the length is for the text
        limited = draw_samples(
            trained, prompts[:1], GenerationRequest(), defaults=GenerationDefaults(max_length=length)
        )
        assert next(limited).tokens == (3 if length > prompt_size else (length - 1) // 2)
    free = GenerationRequest(Sampler(2.0), max_tokens=8)
    for prompt in prompts:
        shown: list[str] = []
        (streamed,), (whole,) = (
            draw_samples(trained, [prompt], free, None, shown.append),
            draw_samples(trained, [prompt], free),
        )
        assert "".join(shown) == streamed.text == whole.text
