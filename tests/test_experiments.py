"""Every experiment that comes with the library: it can be built, written down and read, and its sizes fit together."""

import importlib
import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from jaxlm.cli.experiments import load_object
from jaxlm.config.display import differences, format_config
from jaxlm.config.serialization import from_json, to_json
from jaxlm.corpora.corpus import Corpus
from jaxlm.data.minilang.corpus import MiniLang
from jaxlm.data.tokenizers.simple import Bytes
from jaxlm.experiment import Experiment, load_experiment, variants
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.finetune_heads import FineTunable
from jaxlm.models.properties import abstract_params, dummy_batch
from jaxlm.models.reward_model import ActorCritic, RewardModel
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.regression import TextRegression
from jaxlm.tasks.tagging import Tagging

FOLDER = Path(__file__).parents[1] / "experiments"
MODULES = sorted(f"experiments.{path.stem}" for path in FOLDER.glob("*.py") if path.stem != "__init__")
NAMES = [f"{module}:{name}" for module in MODULES for name in variants(importlib.import_module(module))]
NAMES = [name for name in NAMES if os.environ.get("JAXLM_DATA") or not name.endswith("_labels")]  # labels of a treebank


def parameters(experiment: Experiment) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(experiment.model)))


def readable(experiment: Experiment) -> Experiment:
    """A model that takes its trunk from another run, with one."""
    model = experiment.model
    if not isinstance(model, FineTunable) or model.model is not None:
        return experiment
    vocab = experiment.tokenizer.vocab_size
    is_decoder = isinstance(model, RewardModel | ActorCritic)
    trunk = Decoder(vocab, 8, 2, 12, 1) if is_decoder else Encoder(vocab, 8, 2, 12, 1, max_length=512)
    return replace(experiment, model=model.with_trunk(trunk))


def test_there_are_experiments_in_every_module():
    corpora = {"experiments.corpora"}  # for `jaxlm prepare`
    assert {name.partition(":")[0] for name in NAMES} == set(MODULES) - corpora and MODULES


def test_the_corpora_can_be_loaded():
    for variant in ("demo", "web"):
        assert load_object(f"experiments.corpora:{variant}", Corpus).map_steps


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_fit_together(name):
    """The model, at its real size, as shapes; what the tokenizer will have, the model embeds."""
    experiment = readable(load_experiment(name))
    vocab, model = 260 if isinstance(experiment.tokenizer, Bytes) else experiment.tokenizer.vocab_size, experiment.model
    assert getattr(model, "vocab", vocab) == vocab
    params = abstract_params(model)
    logits = jax.eval_shape(model.apply, {"params": params}, dummy_batch(2, 16))
    shapes = {Tagging: (2, 16, -1), Classification: (2, -1), TextRegression: (2, 1)}
    expected = next((shape for kind, shape in shapes.items() if isinstance(experiment.task, kind)), (2, 16, vocab))
    if isinstance(model, RewardModel):
        expected = (2,)
    if expected[-1] < 0:
        expected = (*expected[:-1], len(experiment.task.labels))
    assert logits.shape == expected and logits.dtype == "float32"
    optimizer = experiment.optimizer.build(experiment.steps)
    jax.eval_shape(lambda: optimizer.init(jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape), params)))
    assert float(experiment.optimizer.schedule.build(experiment.steps)(experiment.steps // 2)) > 0
    assert experiment.average_last <= max(experiment.keep_checkpoints, 1)
    assert experiment.evaluate_every % experiment.checkpoint_every == 0, "the best step is one that was saved"


@pytest.mark.parametrize("name", NAMES)
def test_the_config_goes_through_json(name):
    experiment = load_experiment(name)
    text = json.dumps(to_json(experiment), allow_nan=False)
    assert from_json(json.loads(text)) == experiment
    assert differences(experiment, json.loads(text)) == []
    assert "0x" not in format_config(experiment), "an address is no description"


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name):
    module, _, variant = name.partition(":")
    made = getattr(importlib.import_module(module), variant)
    assert importlib.import_module(module).__doc__ and made.__doc__
    assert all(
        source.describe()
        for source in (
            load_experiment(name).task.train,
            load_experiment(name).task.valid,
            load_experiment(name).task.test,
        )
    )


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(load_experiment(name).task.train, MiniLang)])
def test_a_vocabulary_of_the_built_in_corpus_is_full(name):
    """A corpus with fewer words than asked for would give a tokenizer that does not fit the model."""
    experiment = load_experiment(name)
    task = replace(experiment.task, train=replace(experiment.task.train, count=5000))
    assert experiment.tokenizer.fit(task.texts()).vocab_size == experiment.model.vocab


def test_the_transformers_of_the_paper():
    """Table 3 of Vaswani et al. 2017, and section 5: base 65 million, big 213 million parameters, rounded."""
    base, big = load_experiment("experiments.wmt14:base_en_de"), load_experiment("experiments.wmt14:big_en_de")
    french = load_experiment("experiments.wmt14:big_en_fr")
    assert (base.model.width, base.model.heads, base.model.hidden, base.model.dropout) == (512, 8, 2048, 0.1)
    assert (big.model.width, big.model.heads, big.model.hidden, big.model.dropout) == (1024, 16, 4096, 0.3)
    assert french.model.dropout == 0.1
    assert parameters(base) == 63_082_496 and parameters(big) == 214_245_376
    for experiment, steps, average in ((base, 100_000, 5), (big, 300_000, 20)):
        model, optimizer = experiment.model, experiment.optimizer
        assert (model.encoder_layers, model.decoder_layers, model.norm, model.activation) == (6, 6, "post", "relu")
        assert (model.position, model.tie_embeddings) == ("sinusoidal", "all")
        assert (optimizer.b1, optimizer.b2, optimizer.eps, experiment.objective.label_smoothing) == (
            0.9,
            0.98,
            1e-9,
            0.1,
        )
        assert (experiment.steps, experiment.average_last) == (steps, average)
        rate = optimizer.schedule.build(steps)
        for n in (1, 4000, 100_000):
            expected = model.width**-0.5 * min(n**-0.5, n * 4000**-1.5)
            assert float(rate(n - 1)) == pytest.approx(expected, rel=1e-5)
        beam = experiment.task.search.beam
        assert (beam.num_beams, beam.length_penalty_kind, beam.length_penalty) == (4, "gnmt", 0.6)


def test_bert_base():
    """Devlin et al. 2019, section 3 and appendix A.2; as many parameters as the published file with both heads has."""
    base = load_experiment("experiments.bert:base")
    model, rows, optimizer = base.model, base.batching, base.optimizer
    assert parameters(base) == 110_106_428
    assert (model.layers, model.width, model.heads, model.hidden, model.dropout) == (12, 768, 12, 3072, 0.1)
    assert (rows.length, rows.rows, base.steps, rows.masking.mlm_probability) == (512, 256, 1_000_000, 0.15)
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay, optimizer.schedule.peak) == (0.9, 0.999, 0.01, 1e-4)
    assert optimizer.schedule.warmup == 10_000


def test_the_published_llamas():
    """The numbers of parameters of Llama 3.2 1B and Llama 3.1 8B."""
    assert parameters(load_experiment("experiments.llama:llama_1b")) == 1_235_814_400
    assert parameters(load_experiment("experiments.llama:llama_8b")) == 8_030_261_248
