"""Every published form of a tokenizer: the ids, and the special ids, are those of Transformers for the same text."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.zoo import params_of

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.batching.sequence_format import SequenceFormat
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import SpecialIds
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.decode.beam_config import Beam
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.huggingface.convert import load_pretrained, save_pretrained
from jaxlm.huggingface.tokenizer_files import read_tokenizer
from jaxlm.huggingface.workdir import import_folder
from jaxlm.inference.generate import GenerationRequest, draw_samples
from jaxlm.inference.translate import Search, translate
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.finetune_heads import sequence_markers
from jaxlm.pytree import named_leaves
from jaxlm.workdir import Workdir

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = pytest.mark.filterwarnings("default")

TEXTS = ["the green witch arrived", "a dog runs, and a cat sleeps.", "¿quién llegó? 東京 🙂", "two  spaces", ""]


def byte_level(folder: Path, special: list[str]) -> Any:
    """Save a byte-level BPE with these special tokens, which have the first ids."""
    learnt = tokenizers.ByteLevelBPETokenizer()
    learnt.train_from_iterator(TEXTS * 4, vocab_size=300, special_tokens=special, show_progress=False)
    learnt.save(str(folder / "tokenizer.json"))
    return learnt


def target_rows(tokenizer: Any, texts: list[str]) -> list[tuple[list[int], list[int]]]:
    """(what a model reads, what it predicts) of each text."""
    column = Ragged.from_rows(tokenizer.encode(texts))
    rows: dict[int, tuple[list[int], list[int]]] = {}
    for row_B, batch in eval_batches({"target": column}, 64, special=tokenizer.special):
        for row, index in enumerate(row_B.tolist()):
            valid_T = batch.target_valid_BT[row]
            rows[index] = batch.target_BT[row, valid_T].tolist(), batch.label_BT[row, valid_T].tolist()
    return [rows[index] for index in range(len(texts))]


@pytest.mark.parametrize("ends", [2, [2, 5, 9]], ids=["one end", "several ends"])
def test_decoder(tmp_path, ends):
    """A text with control tokens in it, between BOS and EOS; every end id ends a text."""
    byte_level(tmp_path, ["<pad>", "<s>", "</s>", "<|user|>"])
    their = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    config = {"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": 0}
    tokenizer = read_tokenizer(tmp_path, config, 310)
    texts = [*TEXTS, "<|user|>a dog", "the witch</s>a cat <s>"]
    for text, ids, (read, predicted) in zip(texts, tokenizer.encode(texts), target_rows(tokenizer, texts), strict=True):
        assert ids.tolist() == their(text, add_special_tokens=False).input_ids
        assert (read, predicted) == ([1, *ids], [*ids, 2])
    end_ids = (2,) if ends == 2 else (2, 5, 9)
    assert tokenizer.special == SpecialIds(pad=0, unk=None, bos=1, eos=2, start=1, end_ids=end_ids)
    assert not tokenizer.special.is_unknown(np.arange(310)).any()


def test_one_id_begins_and_ends(tmp_path):
    """GPT-2: texts begin with the end of the one before them, if the config names no BOS or the same id."""
    byte_level(tmp_path, ["<|endoftext|>"])
    for config in ({"bos_token_id": 0, "eos_token_id": 0}, {"eos_token_id": 0}):
        tokenizer = read_tokenizer(tmp_path, config, 300)
        assert (tokenizer.special.start, tokenizer.special.eos, tokenizer.special.pad) == (0, 0, None)
        (read, predicted), _ = target_rows(tokenizer, ["a dog", ""])
        assert read[0] == predicted[-1] == 0 and read[1:] == predicted[:-1] == tokenizer.encode(["a dog"])[0].tolist()
    with pytest.raises(UserError, match="no eos_token_id"):
        read_tokenizer(tmp_path, {}, 300)


@pytest.mark.parametrize("form", ["bert", "roberta"])
def test_encoder(tmp_path, form):
    """One text and a pair: the ids with their control tokens, and the token types, are theirs."""
    if form == "bert":
        learnt = tokenizers.BertWordPieceTokenizer()
        learnt.train_from_iterator(TEXTS * 4, vocab_size=200, min_frequency=1, show_progress=False)
        names = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
        their = transformers.BertTokenizerFast(vocab=learnt.get_vocab())
    else:
        byte_level(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        names = {"cls": "<s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
        content = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
        merges = [tuple(merge) for merge in content["merges"]]
        their = transformers.RobertaTokenizerFast(vocab=content["vocab"], merges=merges)
    their.save_pretrained(tmp_path)
    tokenizer = read_tokenizer(tmp_path, {"pad_token_id": their.pad_token_id}, 300, "encoder")
    special = tokenizer.special
    assert (special.start, special.eos, special.unk) == tuple(
        their.convert_tokens_to_ids(names[role]) for role in ("cls", "sep", "unk")
    )
    layout = SequenceFormat(num_separators=2 if form == "roberta" else 1)
    for parts in [(text,) for text in TEXTS] + [(TEXTS[0], TEXTS[1]), (f"a {names['mask']} dog", "two")]:
        column = Ragged.from_rows(layout.encode_rows(tokenizer, ["\t".join(parts)]))
        ((_, batch),) = eval_batches({"source": column}, 8, row_multiple=1, special=special)
        valid_S = batch.source_valid_BS[0]
        expected = their(*parts, return_token_type_ids=True)
        assert batch.source_BS[0, valid_S].tolist() == expected.input_ids
        if form == "bert":
            assert np.asarray(sequence_markers(batch, special)[2])[0, valid_S].tolist() == expected.token_type_ids


def test_marian(tmp_path):
    """Two SentencePiece models and a vocabulary; a language code at the beginning is one id."""
    spoken = []
    for side in ("source", "target"):
        learnt = SentencePiece(36, byte_fallback=False, character_coverage=0.98, normalization="nmt_nfkc").fit(
            TEXTS * 8
        )
        (tmp_path / f"{side}.spm").write_bytes(learnt.model)
        spoken += [learnt._processor.id_to_piece(index) for index in range(4, 36)]
    pieces = ["</s>", "<unk>", *sorted(set(spoken)), ">>fra<<", ">>ron<<", "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    files = {name: str(tmp_path / f"{name}.spm") for name in ("source", "target")}
    their = transformers.MarianTokenizer(files["source"], files["target"], str(tmp_path / "vocab.json"))
    pad = len(pieces) - 1
    model = EncoderDecoder(
        len(pieces), 16, 2, 24, 1, 1, activation="silu", position="sinusoidal_halves", max_length=64, logit_bias=True
    )
    ids = {"eos_token_id": 0, "decoder_start_token_id": pad, "pad_token_id": pad, "bad_words_ids": [[pad], [4, 5]]}
    save_pretrained(tmp_path, model, params_of(model), ids)
    tokenizer = read_tokenizer(tmp_path, ids, len(pieces), "encoder_decoder")
    assert tokenizer.special == SpecialIds(pad, unk=1, bos=None, eos=0, start=pad, end_ids=(0,), suppress=(pad,))
    for text in [*TEXTS, ">>fra<< a dog", ">>ron<<the witch", ">>xyz<< a", "a >>fra<< b", ">> a"]:
        column = Ragged.from_rows(tokenizer.encode([text]))
        ((_, batch),) = eval_batches({"source": column}, 8, row_multiple=1, special=tokenizer.special)
        assert batch.source_BS[batch.source_valid_BS].tolist() == their(text).input_ids, text
    import_folder(tmp_path, tmp_path / "run")
    run = Workdir(tmp_path / "run").load()
    run.params["output_bias"] = run.params["output_bias"].at[pad].set(100.0)  # the best token of every step
    search = Search(Beam(2), max_len_ratio=0.0, max_len_extra=6)
    for (hypothesis,) in translate(run, ["a dog", ">>fra<< a cat"], search):
        assert hypothesis.ids and pad not in hypothesis.ids


def test_one_sentencepiece_model(tmp_path):
    """T5 and Llama 2: the ids are those of the file, also for what it does not know."""
    import sentencepiece

    options = {"vocab_size": 34, "model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 8), model_prefix=str(tmp_path / "spiece"), minloglevel=3, num_threads=1,
        character_coverage=0.98, **options,
    )  # fmt: skip
    config = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    tokenizer = read_tokenizer(tmp_path, config, 64, "encoder_decoder")
    assert tokenizer.special == SpecialIds(0, unk=2, bos=None, eos=1, start=0, end_ids=(1,), suppress=(0,))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokenizer.save(tmp_path / "saved")
    for text, (read, predicted) in zip(TEXTS, target_rows(load_tokenizer(tmp_path / "saved"), TEXTS), strict=True):
        assert predicted == [*processor.encode(text), 1] and read == [0, *predicted[:-1]]


def test_several_ends_end_a_text(tmp_path):
    """Greedy search ends at the first of several end ids, with the tokens of Transformers; nothing is moved."""
    torch = pytest.importorskip("torch")
    byte_level(tmp_path, ["<s>"])
    model = Decoder(300, 16, 2, 24, 2, max_length=64)
    params = params_of(model)
    save_pretrained(tmp_path, model, params, {"bos_token_id": 0, "eos_token_id": 0})
    their = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    (prompt,) = read_tokenizer(tmp_path, {"eos_token_id": 0}, 300).encode(["the green"])
    ids = torch.tensor([[0, *prompt]])
    options = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    free = their.generate(ids, eos_token_id=None, **options)[0, ids.shape[1] :].tolist()
    last = next(token for index, token in enumerate(free[3:], 3) if token not in free[:index] and token)
    save_pretrained(tmp_path, model, params, {"bos_token_id": 0, "eos_token_id": [0, last, 299]})
    import_folder(tmp_path, tmp_path / "run")
    run = Workdir(tmp_path / "run").load()
    (sample,) = draw_samples(run, ["the green"], GenerationRequest(Sampler(temperature=0.0), max_tokens=10))
    expected = their.generate(ids, eos_token_id=[0, last, 299], **options)[0, ids.shape[1] :].tolist()
    assert sample.tokens == len(expected) == free.index(last) + 1 and sample.reason == "stop"
    assert sample.text == run.tokenizer.decode([expected])[0]
    stored, own = named_leaves(run.params), named_leaves(load_pretrained(tmp_path)[1])
    assert stored.keys() == own.keys()
    for name, leaf in own.items():
        np.testing.assert_array_equal(stored[name], leaf, err_msg=name)


@pytest.mark.parametrize("text", ["the [SEP] witch", "a dog[CLS]"])
def test_marks_of_a_row_in_a_text(tmp_path, text):
    """Models tell the parts of a row by its marks, so that no other text may have them."""
    wordpiece = tokenizers.BertWordPieceTokenizer()
    wordpiece.train_from_iterator(TEXTS * 4, vocab_size=120, show_progress=False)
    wordpiece.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path, {"pad_token_id": 0}, 120, "encoder")
    with pytest.raises(UserError, match=f"{re.escape(text)}.*special token with the id.*TABs"):
        SequenceFormat().encode_rows(tokenizer, ["a dog", text])
