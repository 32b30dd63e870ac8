"""Published models as workdirs: their tokenizers, the commands, and out again; against Transformers."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.zoo import params_of

from jaxlm.cli.main import main
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.decode.beam_config import Beam
from jaxlm.errors import UserError
from jaxlm.huggingface.convert import save_pretrained
from jaxlm.huggingface.tokenizer_files import read_tokenizer
from jaxlm.huggingface.workdir import export_folder, import_folder
from jaxlm.inference.translate import Search
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.workdir import Workdir

TEXTS = ["the green witch arrived", "a dog runs, and a cat sleeps.", "¿quién llegó? ñandú 東京 🙂", ""] * 8
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
MARIAN = EncoderDecoder(
    90, 16, 2, 24, 1, 1, activation="silu", position="sinusoidal_halves", max_length=64, logit_bias=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """A folder as gpt2 is published: byte-level BPE, and one token that begins and ends a text."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("gpt2")
    learnt = tokenizers.ByteLevelBPETokenizer()
    learnt.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    learnt.save(str(folder / "tokenizer.json"))
    model = Decoder(300, 16, 2, 24, 2, max_length=64)
    save_pretrained(folder, model, params_of(model), ENDS, dtype="bfloat16")
    return folder


@pytest.fixture(scope="module")
def marian(tmp_path_factory) -> Path:
    """A folder as OPUS-MT models are published: two SentencePiece models and the ids of their pieces."""
    folder = tmp_path_factory.mktemp("marian")
    spoken = []
    for side, texts in (("source", TEXTS), ("target", [text.upper() for text in TEXTS])):
        learnt = SentencePiece(36, byte_fallback=False, character_coverage=0.98, normalization="nmt_nfkc").fit(texts)
        (folder / f"{side}.spm").write_bytes(learnt.model)
        spoken += [learnt._processor.id_to_piece(i) for i in range(4, 36)]
    pieces = ["</s>", "<unk>", *sorted(set(spoken)), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    model = MARIAN.clone(vocab=len(pieces))
    ids = {"eos_token_id": 0, "decoder_start_token_id": len(pieces) - 1, "pad_token_id": len(pieces) - 1}
    save_pretrained(folder, model, params_of(model), ids)
    return folder


def test_fast_tokenizer(gpt2, tmp_path):
    """Every text comes back, also from the disk; the ids are those of the file."""
    import tokenizers

    tokenizer = read_tokenizer(gpt2, ENDS, 300)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(gpt2 / "tokenizer.json"))
    assert again.vocab_size == 300 and again.fingerprint == tokenizer.fingerprint and again == tokenizer
    assert tokenizer.decode(again.encode(TEXTS)) == TEXTS
    for ids, text in zip(tokenizer.encode(TEXTS), TEXTS, strict=True):
        np.testing.assert_array_equal(ids, theirs.encode(text).ids)
    assert again.decode([[0, 299, 5000, -1]]) == again.decode([[299]])
    (tmp_path / "tokenizers.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer(tmp_path)


def test_generate_and_score_and_out_again(gpt2, tmp_path, capsys, monkeypatch):
    assert main(["import-hf", str(gpt2), "--workdir", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    arguments = ["--prompt", "the green", "--temperature", "0", "--max-tokens", "8", "--jsonl"]
    assert main(["generate", str(tmp_path / "run"), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] <= 8
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = transformers.GPT2LMHeadModel.from_pretrained(gpt2, dtype=torch.float32)
    tokenizer = load_tokenizer(tmp_path / "run/tokenizer")
    prompt = torch.tensor([[0, *tokenizer.encode(["the green"])[0]]])
    expected = model.generate(prompt, do_sample=False, max_new_tokens=8, pad_token_id=0, eos_token_id=0)
    assert found["text"] == tokenizer.decode([expected[0, prompt.shape[1] :].tolist()])[0]
    assert main(["generate", str(tmp_path / "run"), *arguments, "--precision", "int8"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] <= 8
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the green witch\n")))
    assert main(["score", str(tmp_path / "run"), "--jsonl"]) == 0
    found = json.loads(capsys.readouterr().out)
    ids = torch.tensor([[0, *tokenizer.encode(["the green witch"])[0], 0]])
    expected = -model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    np.testing.assert_allclose(found["logprob"], expected, rtol=1e-4)
    assert main(["export-hf", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (gpt2 / name).read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (gpt2, tmp_path / "out"))
    assert before == after
    with pytest.raises(UserError, match="not empty"):
        export_folder(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UserError, match="not empty"):
        import_folder(gpt2, tmp_path / "run")


def test_predict(marian, tmp_path):
    """The best answer of greedy search is that of Transformers, from the same pieces."""
    experiment = import_folder(marian, tmp_path / "run")
    trained = Workdir(tmp_path / "run").load()
    lines = ["the green witch arrived", "", "a dog runs."]

    task = replace(experiment.task, search=Search(Beam(1), max_len_ratio=0.0, max_len_extra=8))
    answers = task.predict(replace(trained, model=experiment.model), lines)
    assert answers[1].text == "" and len(answers) == 3
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = transformers.MarianMTModel.from_pretrained(marian)
    pad = model.config.pad_token_id
    for line, answer in zip(lines, answers, strict=True):
        if line:
            source = torch.tensor([[*trained.tokenizer.encode([line])[0], 0]]).long()
            said = model.generate(
                source, attention_mask=torch.ones_like(source), num_beams=1, do_sample=False, max_new_tokens=8,
                bad_words_ids=[[pad]], eos_token_id=0, forced_eos_token_id=None,
            )  # fmt: skip
            expected = trained.tokenizer.decode([said[0, 1:].tolist()])[0]
            assert answer.text == expected.strip()


def test_pieces_of_both_sides(marian, tmp_path):
    tokenizer = read_tokenizer(marian, {"eos_token_id": 0}, 70)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    for left, right in zip(tokenizer.encode(TEXTS), again.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(left, right)
        assert ((left >= 0) & (left < 70)).all()
    assert again.special.unk == 1 and again.decode([[0, 1]]) == [""]


def test_one_model_for_both_sides(tmp_path):
    """As T5 and Llama 2 have it: the ids are those of the SentencePiece model, and the model may embed more."""
    learnt = SentencePiece(290).fit(TEXTS)
    (tmp_path / "spiece.model").write_bytes(learnt.model)
    tokenizer = read_tokenizer(tmp_path, {"eos_token_id": 3}, 310)
    assert tokenizer.vocab_size == 310 and tokenizer.special.unk == 1
    for ids, expected in zip(tokenizer.encode(TEXTS), learnt.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(ids, expected)
    assert tokenizer.decode(tokenizer.encode(TEXTS)) == TEXTS
    assert tokenizer.decode([[0, 2, 3, 309]]) == [""]


def test_an_encoder_needs_its_marks(gpt2, tmp_path):
    """A text of an encoder begins and ends with tokens of its own, which the tokenizer must have."""
    model = Encoder(300, 8, 2, 12, 1)
    save_pretrained(tmp_path / "bert", model, params_of(model))
    shutil.copyfile(gpt2 / "tokenizer.json", tmp_path / "bert" / "tokenizer.json")
    with pytest.raises(UserError, match=r"no tokenizer.json with the cls_token '\[CLS\]'"):
        import_folder(tmp_path / "bert", tmp_path / "run")
    ends = {"cls_token": "<|endoftext|>", "sep_token": {"content": "<|endoftext|>"}, "unk_token": "<|endoftext|>"}
    (tmp_path / "bert" / "special_tokens_map.json").write_text(json.dumps(ends))
    made = import_folder(tmp_path / "bert", tmp_path / "run").model
    special = load_tokenizer(tmp_path / "run" / "tokenizer").special
    assert (special.start, special.eos, special.unk) == (0, 0, 0) and made.mlm_head


def test_a_tokenizer_of_another_model(gpt2, tmp_path):
    """More pieces than the model embeds are refused; a token that was added to the tokenizer alone is never an end."""
    with pytest.raises(UserError, match=r"the tokenizer has \d+ pieces, the model embeds 200 \(vocab_size\)"):
        read_tokenizer(gpt2, ENDS, 200)
    import tokenizers

    more = tokenizers.Tokenizer.from_file(str(gpt2 / "tokenizer.json"))
    more.add_special_tokens(["<pad>"])
    more.save(str(tmp_path / "tokenizer.json"))
    size = more.get_vocab_size() - 1
    beyond = read_tokenizer(tmp_path, ENDS | {"unk_token_id": 7}, size)
    assert beyond.encode(["<pad>"])[0].tolist() == [7] and beyond.special.unk == 7
    with pytest.raises(UserError, match=f"the token '<pad>' with the id {size}, and the model embeds the ids below"):
        read_tokenizer(tmp_path, ENDS, size).encode(["a", "<pad>"])
    learnt = SentencePiece(290).fit(TEXTS)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "spiece.model").write_bytes(learnt.model)
    with pytest.raises(UserError, match=r"the tokenizer has \d+ pieces, the model embeds 200"):
        read_tokenizer(tmp_path, ENDS, 200)


def test_a_folder_without_a_tokenizer(gpt2, tmp_path):
    shutil.copytree(gpt2, tmp_path / "bare")
    (tmp_path / "bare/tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer that jaxlm reads"):
        import_folder(tmp_path / "bare", tmp_path / "run")
