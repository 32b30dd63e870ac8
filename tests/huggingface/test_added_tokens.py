"""Tokens that a published tokenizer looks for in the text itself, and its two sides: ids and texts of Transformers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from fixtures.zoo import params_of

from jaxlm.cli.main import main
from jaxlm.data.storage.token_cache import encode_pairs
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.errors import UserError
from jaxlm.huggingface.convert import save_pretrained
from jaxlm.huggingface.tokenizer_files import read_tokenizer
from jaxlm.huggingface.workdir import import_folder
from jaxlm.inference.embed import TextEmbedder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.workdir import Workdir

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = pytest.mark.filterwarnings("default")

LINES = ["the old baker sells warm bread", "my sister reads a long letter", "a small dog sleeps near the door"] * 8
ANSWERS = ["el viejo panadero vende pan", "mi hermana lee una carta larga", "un perro duerme cerca de la puerta"] * 8
TEXTS = [
    *LINES[:2], "", " ", "a </s> b", "a</s>b", "</s>", "<s>a", "<unk> x", "x<unk>y", "<pad>a <pad>", "a\tb\nc",
    ">>fra<< the dog", "the >>fra<< dog", ">>fra<<the </s> >>spa<< dog", "<extra_id_0> the <extra_id_99> dog",
    "the <tool> old", "the<tool>old <tool>", "  two  spaces ", "▁odd ▁", "<0x41> hex", "</s></s> <s></s>", "東京 🙂",
    "the <end> a<end>",
]  # fmt: skip
FLAGS = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}


def sentencepiece_model(texts: list[str], size: int, **options: Any) -> bytes:
    out = io.BytesIO()
    usual = {"character_coverage": 1.0, "hard_vocab_limit": False, "minloglevel": 3, "num_threads": 1, "pad_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, vocab_size=size, **{**usual, **options}
    )
    return out.getvalue()


def write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def check(folder: Path, vocab_size: int, kind: Any = "decoder") -> None:
    """Ids and texts are those of Transformers, also of the tokenizer that was saved and read again."""
    their = transformers.AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    read_tokenizer(folder, config, vocab_size, kind).save(folder / "saved")
    tokenizer = load_tokenizer(folder / "saved")
    for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert ids.tolist() == their(text, add_special_tokens=False).input_ids, text
        assert tokenizer.decode([ids])[0].strip() == their.decode(ids, skip_special_tokens=True).strip(), text


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("declared", ["usual", "added_tokens.json", "added_tokens_decoder"])
def test_llama_without_tokenizer_json(tmp_path, legacy, declared):
    """A space is prepended to the first part of a text, or to each part between the tokens (legacy)."""
    model = sentencepiece_model(
        LINES, 320, model_type="bpe", byte_fallback=True, hard_vocab_limit=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, unk_id=0, bos_id=1, eos_id=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model)
    options: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "unk_token": "<unk>"}
    options |= {"bos_token": "<s>", "eos_token": "</s>"}
    if declared == "added_tokens.json":
        write(tmp_path, added_tokens={"<tool>": 321, "<pad>": 320})
        options["pad_token"] = "<pad>"
    elif declared == "added_tokens_decoder":
        entries = {index: {"content": text, "special": True} for index, text in enumerate(["<unk>", "<s>", "</s>"])}
        entries |= {320: {"content": "<tool>", "special": True}, 321: {"content": "<end>", "special": False}}
        options["added_tokens_decoder"] = {str(index): {**FLAGS, **entry} for index, entry in entries.items()}
        options["added_tokens_decoder"]["321"]["rstrip"] = True
    write(tmp_path, tokenizer_config=options, config={"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2})
    check(tmp_path, 330)


@pytest.mark.parametrize("declared", [True, False])
def test_sentinels_of_t5(tmp_path, declared):
    """The first sentinel has the highest id, whether or not a file names them."""
    (tmp_path / "spiece.model").write_bytes(sentencepiece_model(LINES, 60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    if declared:
        sentinels = [f"<extra_id_{number}>" for number in range(100)]
        write(tmp_path, special_tokens_map={"eos_token": "</s>", "additional_special_tokens": sentinels})
    config = {"model_type": "t5", "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    write(tmp_path, config=config)
    check(tmp_path, 180, "encoder_decoder")


@pytest.mark.parametrize("declared", ["added_tokens.json", "added_tokens_decoder"])
def test_tokens_beside_tokenizer_json(tmp_path, declared):
    byte_level = tokenizers.ByteLevelBPETokenizer()
    byte_level.train_from_iterator(LINES, vocab_size=300, special_tokens=["</s>"], show_progress=False)
    byte_level.save(str(tmp_path / "tokenizer.json"))
    if declared == "added_tokens.json":
        write(tmp_path, added_tokens={"<tool>": 300, "<end>": 301})
        write(tmp_path, tokenizer_config={"tokenizer_class": "GPT2Tokenizer", "mask_token": "<end>"})
    else:
        entries = {"300": {"content": "<tool>", "special": True}, "301": {"content": "<end>", "special": False}}
        decoder = {index: {**FLAGS, **entry} for index, entry in entries.items()}
        write(
            tmp_path, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": decoder}
        )
    write(tmp_path, config={"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0})
    check(tmp_path, 302)
    tokenizer = read_tokenizer(tmp_path, {"bos_token_id": 0, "eos_token_id": 0}, 301)
    with pytest.raises(UserError, match=r"the token '<end>' with the id 301, and the model embeds the ids below 301"):
        tokenizer.encode(["a<end>b"])
    write(tmp_path, added_tokens={"<tool>": 305}, tokenizer_config={})
    with pytest.raises(UserError, match=r"'<tool>' the id 305, tokenizer.json gives it 300"):
        read_tokenizer(tmp_path, {"bos_token_id": 0, "eos_token_id": 0}, 302)


@pytest.fixture(params=["one vocabulary", "two vocabularies"])
def marian(tmp_path, request):
    """A folder as Marian is published, and whether its sides have vocabularies of their own."""
    two = request.param == "two vocabularies"
    sides = []
    for name, texts in (("source", LINES), ("target", ANSWERS)):
        model = sentencepiece_model(texts, 50, unk_id=0, bos_id=1, eos_id=2)
        (tmp_path / f"{name}.spm").write_bytes(model)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        sides.append([processor.id_to_piece(index) for index in range(3, processor.get_piece_size())])
    source = sides[0] if two else [">>fra<<", *sorted({*sides[0], *sides[1]})]
    vocab = {piece: index for index, piece in enumerate(["</s>", "<unk>", *source, "<pad>"])}
    write(tmp_path, vocab=vocab)
    size = len(vocab)
    if two:
        target = ["</s>", "<unk>", *reversed(sides[1]), "<pad>"]
        write(tmp_path, target_vocab={piece: index for index, piece in enumerate(target)})
        size = len(target)
    write(tmp_path, tokenizer_config={"tokenizer_class": "MarianTokenizer", "separate_vocabs": two})
    pad = len(vocab) - 1
    model = EncoderDecoder(
        size, 16, 2, 24, 1, 1, activation="silu", position="sinusoidal_halves", max_length=64, logit_bias=True,
        tie_embeddings="target" if two else "all", source_vocab=len(vocab) if two else None,
    )  # fmt: skip
    ids = {"eos_token_id": 0, "decoder_start_token_id": pad, "pad_token_id": pad}
    save_pretrained(tmp_path / "model", model, params_of(model), ids)
    for path in (tmp_path / "model").iterdir():
        path.rename(tmp_path / path.name)
    return tmp_path


def test_two_sides(marian, capsys, monkeypatch):
    """Score, fine-tuning and validation read targets by the pieces and the vocabulary of the target."""
    their = transformers.AutoTokenizer.from_pretrained(marian)
    config = json.loads((marian / "config.json").read_text())
    read_tokenizer(marian, config, config["decoder_vocab_size"], "encoder_decoder").save(marian / "saved")
    tokenizer = load_tokenizer(marian / "saved")
    texts = [*TEXTS, *ANSWERS[:3]]
    columns = encode_pairs([(text, text) for text in texts], tokenizer)
    for index, text in enumerate(texts):
        source, target = their(text).input_ids[:-1], their(text_target=text).input_ids[:-1]
        assert columns["source"][index].tolist() == source and columns["target"][index].tolist() == target, text
        assert tokenizer.decode([target])[0] == their.decode(target, skip_special_tokens=True).strip()
    assert tokenizer.side("source").decode([tokenizer.encode(LINES[:1])[0]]) == LINES[:1]
    torch = pytest.importorskip("torch")
    assert main(["import-hf", str(marian), "--workdir", str(marian / "run")]) == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{LINES[0]}\t{ANSWERS[0]}\n".encode())))
    assert main(["score", str(marian / "run"), "--jsonl"]) == 0
    answer = json.loads(capsys.readouterr().out)
    inputs = their(LINES[0], text_target=ANSWERS[0], return_tensors="pt")
    with torch.no_grad():
        loss = transformers.MarianMTModel.from_pretrained(marian)(**inputs).loss.item()
    tokens = inputs["labels"].shape[1]
    assert answer["tokens"] == tokens and answer["logprob"] == pytest.approx(-loss * tokens, rel=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_vectors_of_texts_with_control_tokens(tmp_path, family):
    """Masks, unknown and padding tokens in a text: hidden states are those of Transformers."""
    torch = pytest.importorskip("torch")
    if family == "bert":
        learnt, kind, size = tokenizers.BertWordPieceTokenizer(), "Bert", 120
        learnt.train_from_iterator(LINES, vocab_size=size, show_progress=False)
        roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
        pad, texts = "[PAD]", ["the [MASK] baker [UNK] sells", "a [PAD] dog[PAD] sleeps"]
    else:
        learnt, kind, size = tokenizers.ByteLevelBPETokenizer(), "Roberta", 300
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        learnt.train_from_iterator(LINES, vocab_size=size, special_tokens=special, show_progress=False)
        roles = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}
        pad, texts = "<pad>", ["the <mask> baker<unk> sells", "a <pad> dog<pad><pad> sleeps"]
    learnt.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config={"tokenizer_class": f"{kind}Tokenizer", "pad_token": pad, **roles})
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40, pad_token_id=learnt.token_to_id(pad),
    )  # fmt: skip
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(tmp_path)
    import_folder(tmp_path, tmp_path / "run")
    vectors = TextEmbedder("token")(Workdir(tmp_path / "run").load(), texts)
    for text, vector in zip(texts, vectors, strict=True):
        ids = [learnt.token_to_id(roles["cls_token"]), *learnt.encode(text, add_special_tokens=False).ids]
        with torch.no_grad():
            expected = model(torch.tensor([[*ids, learnt.token_to_id(roles["sep_token"])]])).last_hidden_state[0]
        np.testing.assert_allclose(vector, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize(
    "options, refused",
    [
        ({"add_prefix_space": True}, "add_prefix_space = True"), ({"add_prefix_space": False}, ""),
        ({"split_special_tokens": True}, "split_special_tokens"), ({"split_special_tokens": False}, ""),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True}, ""),
    ],
)  # fmt: skip
def test_options_that_change_tokenizer_json(tmp_path, options, refused):
    byte_level = tokenizers.ByteLevelBPETokenizer()
    byte_level.train_from_iterator(LINES, vocab_size=300, special_tokens=["</s>"], show_progress=False)
    byte_level.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, config={"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0}, tokenizer_config=options)
    if not refused:
        return check(tmp_path, 300)
    with pytest.raises(UserError, match=f"tokenizer_config.json has {refused}"):
        check(tmp_path, 300)
