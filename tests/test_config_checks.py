"""Values of a config whose type or range is wrong are refused by name, wherever a config comes from."""

import dataclasses
import importlib
import json
import math
import pkgutil

import pytest
from fixtures.cli_runs import command  # noqa: F401

import jaxlm
from jaxlm.config.checks import check_fields, field_types
from jaxlm.config.serialization import check_config, field_names, from_json, to_json
from jaxlm.errors import UserError
from jaxlm.experiment import load_experiment
from jaxlm.huggingface.convert import load_pretrained
from jaxlm.optim import SGD, AdamW
from jaxlm.training.run_options import RunOptions
from jaxlm.workdir import Workdir

TINY = "experiments.quickstart"


def _config_classes():
    for found in pkgutil.walk_packages(jaxlm.__path__, "jaxlm."):
        if not found.name.endswith("__main__"):
            for value in vars(importlib.import_module(found.name)).values():
                if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == found.name:
                    yield value


def test_every_default_of_every_config_passes():
    pytest.importorskip("jinja2")  # every module is imported
    checked = 0
    for cls in _config_classes():
        defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
        if defaults and "type" not in defaults:
            values = {name: defaults[name] for name in field_names(cls) if name in defaults}
            check_fields(cls, values, cls.__name__, "")
            checked += bool(field_types(cls)) * len(values)
    assert checked > 400


WRONG = {
    "text for a number": (("model", "heads"), "4", "model.heads: expected an integer, found '4'"),
    "a number for text": (("best_metric",), 3, "best_metric: expected a string, found 3"),
    "a fraction for an integer": (("steps",), 1.5, "steps: expected an integer, found 1.5"),
    "a truth value for an integer": (("model", "width"), True, "model.width: expected an integer, found True"),
    "a list for a number": (("model", "dropout"), [0.1], "model.dropout: expected a number, found (0.1,)"),
    "None for a number": (("seed",), None, "seed: expected an integer, found None"),
    "a number for a config": (("batching",), 3, "batching: expected Buckets or Packing or RunningText, found 3"),
    "another choice": (("model", "norm"), "mid", "model.norm: expected one of "),
    "absurdly many layers": (
        ("model", "encoder_layers"),
        10**7,
        "encoder_layers: expected at most 10000, found 10000000",
    ),
    "a whole number that JAX cannot take": (
        ("model", "norm_epsilon"),
        2**40,
        "norm_epsilon: expected at most 2147483647",
    ),
    "no layers": (("model", "decoder_layers"), 0, "decoder_layers: expected 1 or more, found 0"),
    "a negative size": (("model", "width"), -8, "model.width: expected 1 or more, found -8"),
    "a size of zero": (("model", "heads"), 0, "model.heads: expected 1 or more, found 0"),
    "a huge size": (("batching", "tokens"), 10**30, "batching.tokens: expected at most 2147483647"),
    "a negative count": (("patience",), -1, "patience: expected 0 or more, found -1"),
    "a share above 1": (("model", "dropout"), 1.5, "model.dropout: expected 0 to 1, found 1.5"),
    "an integer above 1": (("model", "dropout"), 2, "model.dropout: expected 0 to 1, found 2"),
    "infinity": (
        ("optimizer", "schedule", "peak"),
        {"type": "float", "value": "inf"},
        "optimizer.schedule.peak: expected a finite number, found inf",
    ),
    "a float that is none": (("model", "dropout"), {"type": "float", "value": "x"}, "not a value of the type 'float'"),
    "a path without text": (("task",), {"type": "pathlib.Path"}, "not a value of the type 'pathlib.Path'"),
    "a dict without items": (("task",), {"type": "dict", "items": 3}, "not a value of the type 'dict'"),
}


@pytest.mark.parametrize("path, value, expected", WRONG.values(), ids=WRONG.keys())
def test_experiment_json_with_a_wrong_value(tmp_path, path, value, expected):
    data = to_json(load_experiment(TINY))
    place = data
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (tmp_path / "experiment.json").write_text(json.dumps({"format": 2, "experiment": data}))
    with pytest.raises(UserError) as caught:
        Workdir(tmp_path).read_experiment()
    assert expected in str(caught.value) and "experiment.json" in str(caught.value)


RECORDS = ['{"format": "2", "experiment": {}}', '{"format": 2, "experiment": []}', '{"format": 2, "experiment": {}}']


@pytest.mark.parametrize("content", ["[]", "{}", "1e999", '{"format": 2, "format": 2}', *RECORDS])
def test_experiment_json_that_is_no_record(tmp_path, content):
    (tmp_path / "experiment.json").write_text(content)
    with pytest.raises(UserError, match="experiment.json"):
        Workdir(tmp_path).read_experiment()


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--model.encoder-layers", "10000000"], "--model.encoder_layers: expected at most 10000, found 10000000"),
        (["--model.width", "-8"], "--model.width: expected 1 or more, found -8"),
        (["--model.dropout", "1.5"], "--model.dropout: expected 0 to 1, found 1.5"),
        (["--optimizer.schedule.peak", "nan"], "--optimizer.schedule.peak: expected a finite number, found nan"),
        (["--seed", "4294967296"], "--seed: expected at most 4294967295, found 4294967296"),
    ],
)
def test_an_override_with_a_wrong_value(command, words, expected):  # noqa: F811
    result = command("show", TINY, *words)
    assert result.code == 2 and result.err.startswith(f"jaxlm: {expected}") and len(result.err.splitlines()) == 1


def test_an_experiment_of_python_with_a_wrong_value(tmp_path):
    experiment = load_experiment(TINY)
    wrong = dataclasses.replace(experiment, model=experiment.model.clone(heads=2.0))
    with pytest.raises(UserError, match=r"e.model.heads: expected an integer, found 2.0: set another value"):
        check_config(wrong, "e")
    with pytest.raises(UserError, match="experiment.model.heads: expected an integer"):
        Workdir(tmp_path / "run").open_or_create(wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: RunOptions(step_timeout=-1), "RunOptions.step_timeout: expected 0 or more, found -1"),
        (lambda: RunOptions(step_timeout=math.inf), "RunOptions.step_timeout: expected a finite number, found inf"),
        (lambda: RunOptions(remat="all"), "RunOptions.remat: expected one of"),
        (lambda: check_config(AdamW(clip=-1.0)), "config.clip: expected 0.0 or more, found -1.0"),
        (lambda: check_config(SGD(momentum=1.5)), "config.momentum: expected 0 to 1, found 1.5"),
    ],
    ids=["a negative clock", "an endless clock", "a choice", "a negative clip", "a momentum above 1"],
)
def test_numbers_that_mean_nothing_are_refused_in_python(make, expected):
    with pytest.raises(UserError, match=expected):
        make()


@pytest.mark.parametrize(
    "entries, expected",
    [
        ({"num_hidden_layers": 10**7}, "layers: expected at most 10000"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"hidden_size": -16}, "config.json"),
        ({"hidden_size": "16"}, "config.json"),
        ({"rope_theta": -1.0}, "config.json"),
        ({"architectures": "LlamaForCausalLM"}, "config.json.architectures: expected a list or None"),
        ({"vocab_size": None}, "config.json"),
    ],
)
def test_published_config_with_a_wrong_value(tmp_path, entries, expected):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100, "hidden_size": 16}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config | entries))
    with pytest.raises(UserError, match=expected):
        load_pretrained(tmp_path)


def test_a_class_of_another_package_has_types_but_no_ranges():
    cls = dataclasses.make_dataclass("Own", [("layers", int, -1)], frozen=True)
    check_fields(cls, {"layers": -5}, "own", "")
    with pytest.raises(UserError, match="own.layers: expected an integer"):
        check_fields(cls, {"layers": "x"}, "own", "")


def test_right_values_are_read_back(tmp_path):
    experiment = load_experiment(TINY)
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment
