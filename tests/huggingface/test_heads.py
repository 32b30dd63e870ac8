"""Encoders with their heads, in and out, against Transformers: pre-training, classes, tags; tuned, merged, exported."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import cli_runs
from fixtures.rows import Rows
from fixtures.zoo import params_of

from jaxlm.data.batching.sequence_format import SequenceFormat
from jaxlm.data.tokenizers.base import SpecialIds
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.finetuning import Adapters, FineTuning, LoRA
from jaxlm.huggingface.checkpoint_folder import read_safetensors, write_safetensors
from jaxlm.huggingface.convert import load_pretrained, save_pretrained
from jaxlm.huggingface.workdir import import_folder
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.finetune_heads import MultipleChoice, TextClassifier, TokenClassifier
from jaxlm.models.properties import with_special_ids
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.tagging import Tagging
from jaxlm.training.initialize import match_params, resolve_init
from jaxlm.types import Batch
from jaxlm.workdir import Workdir

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from references.published_models import VOCAB, tensors  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

command = cli_runs.command  # a fixture
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2,
         "vocab_size": VOCAB, "max_position_embeddings": 24}  # fmt: skip
CLS, SEP = 1, 2
PAIR = np.array([[CLS, 5, 6, 7, SEP, 8, 9, SEP], [CLS, 9, SEP, 10, 11, SEP, 0, 0], [CLS, 12, 13, 14, 15, 16, 17, SEP]])
VALID = np.arange(8) < np.array([8, 6, 8])[:, None]
KIND = np.array([[0] * 5 + [1] * 3, [0] * 3 + [1] * 5, [0] * 8])


def made(architecture: str, folder: Path, **options: Any) -> Any:
    """A model of theirs with random parameters, saved to the folder."""
    kind = "Roberta" if architecture.startswith("Roberta") else "Bert"
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
    model = getattr(transformers, architecture)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model


def said(their: Any, kinds: bool = True) -> Any:
    ids, valid, kind = tensors(PAIR, VALID, KIND)
    with torch.no_grad():
        return their(ids, attention_mask=valid, **({"token_type_ids": kind} if kinds else {}))


def told(model: Any, params: Any, method: str | None = None) -> np.ndarray:
    """Of rows of their ids, with their token types."""
    batch = Batch(PAIR.astype(np.int32), VALID, token_type_BS=KIND)
    return np.asarray(jax.jit(lambda params: model.apply({"params": params}, batch, method=method))(params))


def headed(model: Any, params: Any) -> np.ndarray:
    """The logits of a head of the same rows: it finds the token types by the special ids of the tokenizer."""
    model = with_special_ids(model, SpecialIds(start=CLS, eos=SEP))
    batch = Batch(PAIR.astype(np.int32), VALID)
    return np.asarray(jax.jit(lambda params: model.apply({"params": params}, batch))(params))


def same_files(first: Path, second: Path) -> None:
    ours, theirs = (read_safetensors(folder / "model.safetensors") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)


def test_pre_training(tmp_path):
    """Both heads say what theirs say; the files come back; theirs read ours without a word."""
    their = made("BertForPreTraining", tmp_path / "a")
    model, params, config = load_pretrained(tmp_path / "a")
    assert model.mlm_head and model.nsp_head
    expected = said(their)
    np.testing.assert_allclose(told(model, params)[VALID], expected.prediction_logits[VALID], rtol=0, atol=1e-4)

    def following(module: Encoder, batch: Batch) -> Any:
        return module.next_sentence_logits(module.features(batch), batch.source_valid_BS)

    np.testing.assert_allclose(told(model, params, following), expected.seq_relationship_logits, rtol=0, atol=1e-4)
    save_pretrained(tmp_path / "b", model, params, config)
    same_files(tmp_path / "b", tmp_path / "a")
    back, report = transformers.BertForPreTraining.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    np.testing.assert_array_equal(said(back).seq_relationship_logits, expected.seq_relationship_logits)


@pytest.mark.parametrize("architecture", ["BertModel", "RobertaModel"])
def test_the_pooler_of_a_trunk(tmp_path, architecture):
    made(architecture, tmp_path / "a")
    model, params, config = load_pretrained(tmp_path / "a")
    assert model.add_pooling_layer and not model.mlm_head and set(params["pooler"]) == {"kernel", "bias"}
    save_pretrained(tmp_path / "b", model, params, config)
    same_files(tmp_path / "b", tmp_path / "a")


def test_what_a_file_holds_beside_its_architecture(tmp_path):
    """bert-base-uncased says BertForMaskedLM and holds the pair's head too, roberta-base the pooler: both are kept."""
    made("BertForPreTraining", tmp_path / "pairs", architectures=["BertForMaskedLM"])
    config = (tmp_path / "pairs" / "config.json").read_text()
    (tmp_path / "pairs" / "config.json").write_text(config.replace("BertForPreTraining", "BertForMaskedLM"))
    assert load_pretrained(tmp_path / "pairs")[0].nsp_head
    made("RobertaForMaskedLM", tmp_path / "a")
    pooler = {"roberta.pooler.dense.weight": np.ones((16, 16), np.float32), "roberta.pooler.dense.bias": np.ones(16)}
    kept = {name: np.array(x) for name, x in read_safetensors(tmp_path / "a" / "model.safetensors").items()}
    write_safetensors(tmp_path / "a" / "model.safetensors", kept | {n: x.astype(np.float32) for n, x in pooler.items()})
    model, params, config = load_pretrained(tmp_path / "a")
    assert model.add_pooling_layer and not model.nsp_head
    save_pretrained(tmp_path / "b", model, params, config)
    same_files(tmp_path / "b", tmp_path / "a")


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
@pytest.mark.parametrize("what, labels", [("Sequence", 3), ("Sequence", 1), ("Token", 5)])
def test_heads_for_labels(tmp_path, kind, what, labels):
    """Read and written: equal logits, equal arrays, and the names of the labels."""
    names = {i: f"name {i}" for i in range(labels)}
    options = {"type_vocab_size": 1, "pad_token_id": 0} if kind == "Roberta" else {}
    their = made(f"{kind}For{what}Classification", tmp_path / "a", id2label=names, **options)
    model, params, config = load_pretrained(tmp_path / "a")
    assert type(model) is (TextClassifier if what == "Sequence" else TokenClassifier) and model.num_labels == labels
    expected, found = said(their, kind == "Bert").logits.numpy(), headed(model, params)
    real = VALID if what == "Token" else np.ones(3, bool)
    np.testing.assert_allclose(found[real], expected[real], rtol=0, atol=1e-4)
    save_pretrained(tmp_path / "b", model, params, config)
    same_files(tmp_path / "b", tmp_path / "a")
    back, report = type(their).from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and back.config.id2label == names


TRUNK = Encoder(VOCAB, 16, 2, 24, 1, max_length=24, mlm_head=False)


@pytest.mark.parametrize(
    "model",
    [
        TextClassifier(TRUNK, pooling="mean"),
        TextClassifier(TRUNK, use_pooler=False),
        TextClassifier(TRUNK, num_orders=2),
        MultipleChoice(TRUNK),
        TextClassifier(Decoder(VOCAB, 16, 2, 24, 1, max_length=24), pooling="last"),
    ],
    ids=["mean", "no tanh", "orders", "choices", "language model"],
)
def test_heads_that_they_have_not(tmp_path, model):
    with pytest.raises(
        UserError, match=f"describes this {type(model).__name__} on a .*pooling 'first', use_pooler and num_orders"
    ):
        save_pretrained(tmp_path, model, {})


def test_what_keeps_a_model_from_being_said(tmp_path):
    with pytest.raises(UserError, match="the nearest is (ro)?berta?, but for norm: 'pre' here, 'post' in (ro)?berta? "):
        save_pretrained(tmp_path, TRUNK.clone(norm="pre"), {})
    with pytest.raises(UserError, match="nearest is gpt2, but for qkv_bias: False here, True in gpt2 "):
        save_pretrained(tmp_path, Decoder(VOCAB, 16, 2, 24, 1, max_length=24, qkv_bias=False), {})


def test_labels_that_a_head_cannot_tell(tmp_path):
    made("BertForSequenceClassification", tmp_path, problem_type="multi_label_classification")
    with pytest.raises(UserError, match="a text any number of labels"):
        load_pretrained(tmp_path)


def test_a_head_starts_from_the_pooler():
    """Its path is that of the head's own, so that `finetuning.init` finds it; on the trunk it stands no longer."""
    pooled = TRUNK.clone(add_pooling_layer=True)
    model = TextClassifier().with_trunk(pooled)
    assert not model.model.add_pooling_layer
    given = params_of(pooled)
    found = match_params(jax.tree.map(jax.numpy.asarray, params_of(model)), given, 0, "x")
    assert found.initialized == ["head/bias", "head/kernel"] and not found.unused
    np.testing.assert_array_equal(found.loaded["pooler/kernel"], given["pooler"]["kernel"])


TEXTS = ["the road\tgo on", "too tired", "the chicken crossed the road\tbecause it was too wide"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    """A BERT with both of its heads, as a workdir."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("bert")
    learnt = tokenizers.BertWordPieceTokenizer()
    learnt.train_from_iterator(TEXTS * 4, vocab_size=VOCAB, min_frequency=1, show_progress=False)
    made("BertForPreTraining", folder / "files", vocab_size=learnt.get_vocab_size())
    learnt.save(str(folder / "files" / "tokenizer.json"))
    import_folder(folder / "files", folder / "run")
    return folder / "run"


def tuned(imported: Path, folder: Path, task: Any, model: Any, **added: Any) -> Path:
    """A workdir that was fine-tuned from the imported one; its parameters are random."""
    made = Experiment(task, model, finetuning=FineTuning(str(imported), **added), steps=1, best_metric="valid/loss")
    made = resolve_init(made)
    target = Workdir(folder)
    target.create(made)
    target.copy_tokenizer(Workdir(imported))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 0.3, x.shape), x.dtype), made.abstract_params())
    target.save_once(made, params)
    return folder


def test_a_tuned_classifier_is_theirs(imported, tmp_path, command):
    """Low-rank maps are merged on the way out, as `merge` does; their own tokenizer and model say what ours says."""
    rows = Rows((("a", "no"),))
    task = Classification(rows, rows, rows, sequence_format=SequenceFormat(), labels=("no", "yes", "maybe"))
    run = tuned(imported, tmp_path / "run", task, TextClassifier(num_labels=3), lora=LoRA(rank=2))
    for verb, *words in (("export-hf", run, tmp_path / "a"), ("merge", run, tmp_path / "plain"),
                         ("export-hf", tmp_path / "plain", tmp_path / "b"),
                         ("import-hf", tmp_path / "a", "--workdir", tmp_path / "again")):  # fmt: skip
        told = command(verb, *words)
        assert told.code == 0, told.err
    same_files(tmp_path / "b", tmp_path / "a")
    their = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "a").eval()
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    assert their.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    stdin = "".join(f"{text}\n" for text in TEXTS).encode()
    for workdir_of in (run, tmp_path / "again"):
        for text, line in zip(TEXTS, command("predict", workdir_of, "--jsonl", stdin=stdin).lines, strict=True):
            with torch.no_grad():
                expected = torch.softmax(their(**read(*text.split("\t"), return_tensors="pt")).logits, -1)[0]
            found = [json.loads(line)["probabilities"][name] for name in task.labels]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_tuned_tagger_is_theirs(imported, tmp_path, command):
    rows = Rows((("a", "D"),))
    task = Tagging(rows, rows, rows, sequence_format=SequenceFormat(), labels=("D", "N", "V"))
    run = tuned(imported, tmp_path / "run", task, TokenClassifier(num_labels=3))
    assert command("export-hf", run, tmp_path / "a").code == 0
    their = transformers.BertForTokenClassification.from_pretrained(tmp_path / "a").eval()
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    words = "the chicken crossed the widest road".split()
    given = read(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        best = their(**given).logits.argmax(-1)[0].tolist()
    first = [given.word_ids().index(word) for word in range(len(words))]
    said = command("predict", run, stdin=" ".join(words).encode() + b"\n")
    assert said.lines[0].split() == [their.config.id2label[best[at]] for at in first], said.err


def test_adapters_have_no_place(imported, tmp_path, command):
    rows = Rows((("a", "no"),))
    task = Classification(rows, rows, rows, sequence_format=SequenceFormat(), labels=("no", "yes"))
    run = tuned(imported, tmp_path / "run", task, TextClassifier(), adapters=Adapters(bottleneck_dim=2))
    refused = command("export-hf", run, tmp_path / "a")
    assert refused.code == 1 and "has adapters, which no architecture of Transformers has" in refused.err
    assert refused.err.count("\n") == 1 and not (tmp_path / "a").exists()
