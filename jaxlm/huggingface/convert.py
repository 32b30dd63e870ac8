"""Models of Hugging Face Transformers in and out, without PyTorch: a folder of `save_pretrained` <-> model and params.

    model, params, config = load(folder)          # e.g. of gpt2, Llama 3, Mistral, Helsinki-NLP/opus-mt-en-de, t5-small
    save(folder, model, params, config)

Parameters become float32, whatever they were stored in; `save` writes the dtype that it is asked for, or the one that
the config names.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxlm.config import differences
from jaxlm.errors import UserError
from jaxlm.huggingface.architecture import Architecture
from jaxlm.huggingface.checkpoint_folder import MAX_SHARD_BYTES, read_config, read_tensors, write_folder
from jaxlm.huggingface.decoders import GPT2, LLAMA, MISTRAL, QWEN2, QWEN3
from jaxlm.huggingface.encoder_decoders import MARIAN, T5
from jaxlm.huggingface.encoders import BERT, BERT_PRETRAINING, BERT_TRUNK, HEAD_ARCHITECTURES, ROBERTA, ROBERTA_TRUNK
from jaxlm.huggingface.weight_map import params_from_tensors, params_to_tensors
from jaxlm.models.finetune_heads import FineTunable
from jaxlm.models.properties import RUN_FIELDS, abstract_params
from jaxlm.types import Params

ARCHITECTURES = (
    GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, MARIAN, T5, BERT, ROBERTA, BERT_PRETRAINING, BERT_TRUNK, ROBERTA_TRUNK,
    *HEAD_ARCHITECTURES,
)  # fmt: skip

HEAD_HINT = (
    "a language model below it, or a vector that is not tanh(W x + b) of the first position: train with pooling "
    "'first', use_pooler and num_orders = 1 on a BERT or RoBERTa"
)

SAVE_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def load_pretrained(folder: Path, **model_fields: Any) -> tuple[Any, Params, dict[str, Any]]:
    """The model of a folder, its parameters, and its config. `how` sets fields of the model, as in dtype="bfloat16".

    Raises UserError where the architecture is unknown, or the config and the arrays do not fit each other.
    """
    config = read_config(folder)
    family = _architecture_of_config(config, folder)
    try:
        model = family.to_model(config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    tensors = _with_prefix(read_tensors(folder), family)
    model = family.adjust_to_weights(_with_fields(model, model_fields), tensors.keys())
    tensors = _select_weights(tensors, family, model, folder)
    return model, params_from_tensors(family.weight_maps(model), abstract_params(model), tensors, str(folder)), config


def save_pretrained(
    folder: Path,
    model: Any,
    params: Params,
    config: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a folder that `from_pretrained` reads. `config` is what else shall stand in config.json (ids of BOS, ...).

    dtype: "float32", "float16" or "bfloat16"; None: the config's, or else float32. Raises UserError on a model that no
    known family can say.
    """
    known = dict(config or {})
    family = find_architecture(model, known.get("model_type"))
    dtype = dtype or known.get("dtype") or known.get("torch_dtype") or "float32"
    if dtype not in SAVE_DTYPES:
        raise UserError(f"dtype {dtype!r}: expected one of {', '.join(SAVE_DTYPES)}")
    for stale in ("torch_dtype", "rope_parameters"):
        known.pop(stale, None)
    ours = {"architectures": [family.hf_class], "model_type": family.model_type, "dtype": dtype}
    tensors = params_to_tensors(family.weight_maps(model), params, SAVE_DTYPES[dtype])
    if family.trunk_only:
        tensors = {name.removeprefix(family.prefix): tensor for name, tensor in tensors.items()}
    write_folder(folder, {**known, **family.to_config(model), **ours}, tensors, max_shard_bytes)


def find_architecture(model: Any, model_type: str | None = None) -> Architecture:
    """The family whose config says exactly this model, `kind` first. Raises UserError if there is none: the nearest one
    and what would have to change."""
    nearest: tuple[str, list[str]] | None = None
    for family in sorted(ARCHITECTURES, key=lambda family: family.model_type != model_type):
        try:
            same = family.to_model(family.to_config(model))
        except (UserError, AttributeError, TypeError, KeyError):
            continue
        if type(same) is not type(model):
            continue
        apart = differences(_normalized(model), _normalized(same), family.model_type)
        if not apart:
            return family
        if nearest is None or len(apart) < len(nearest[1]):
            nearest = family.model_type, apart
    names = ", ".join(dict.fromkeys(family.model_type for family in ARCHITECTURES))
    found, why = type(model).__name__, "nothing of its kind"
    if isinstance(model, FineTunable):
        found, why = f"{found} on a {type(model.model).__name__}", f"such as {HEAD_HINT}"
    elif nearest:
        why = f"the nearest is {nearest[0]}, but for {'; '.join(nearest[1])} (fields of the model, to be trained so)"
    raise UserError(f"no config.json of {names} says this {found}: {why}")


def _with_fields(model: Any, model_fields: Mapping[str, Any]) -> Any:
    """The model with other fields of how it is run; of a head, the model that it stands on."""
    if isinstance(model, FineTunable):
        return model.clone(model=_with_fields(model.model, model_fields), parent=None)
    return replace(model, **model_fields)


def _normalized(model: Any) -> Any:
    """The model without how it is run and what the arrays alone tell, and with defaults spelled out."""
    apart = (*RUN_FIELDS, "add_pooling_layer", "special")
    fields: dict[str, Any] = {name: None for name in apart if hasattr(model, name)}
    if isinstance(model, FineTunable):
        fields["model"] = _normalized(model.model)
    if getattr(model, "head_dim", 0) is None:
        fields["head_dim"] = model.width // model.heads
    if getattr(model, "kv_heads", 0) is None:
        fields["kv_heads"] = model.heads
    return replace(model, **fields)


def _architecture_of_config(config: Mapping[str, Any], folder: Path) -> Architecture:
    named, kind = config.get("architectures") or [], config.get("model_type")
    for family in ARCHITECTURES:
        if family.hf_class in named or (not named and family.model_type == kind):
            return family
    for family in ARCHITECTURES:
        if family.model_type == kind and all(name.removesuffix("Model") + "Model" == name for name in named):
            return family  # the trunk alone, as in GPT2Model
    known = ", ".join(family.hf_class for family in ARCHITECTURES)
    raise UserError(f"{folder} holds {', '.join(named) or kind!r}; jaxlm reads {known}")


def _with_prefix(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> dict[str, np.ndarray]:
    """The arrays under today's names, with the prefix of the whole model where those of its trunk lack it."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # layer norms of files that began in TensorFlow
        tensors = {name.removesuffix(old) + new if name.endswith(old) else name: x for name, x in tensors.items()}
    if not any(name.startswith(architecture.prefix) for name in tensors):
        bare = ("lm_head.", "cls.", "classifier.", "final_logits_bias")
        tensors = {name if name.startswith(bare) else architecture.prefix + name: tensors[name] for name in tensors}
    return dict(tensors)


def _select_weights(
    tensors: Mapping[str, np.ndarray], architecture: Architecture, model: Any, folder: Path
) -> dict[str, np.ndarray]:
    """The arrays that the table names: without copies, and without what is computed or not used."""
    known, rules = {entry.hf_name for entry in architecture.weight_maps(model)}, architecture.ignored_patterns
    found = {
        name: x for name, x in tensors.items() if name in known or not any(re.fullmatch(rule, name) for rule in rules)
    }
    for other, name in architecture.aliases(model).items():
        copy = found.pop(other, None)
        if copy is None:
            continue
        if name in found and not np.array_equal(found[name], copy):
            raise UserError(
                f"{folder}: config.json says that {other} is {name}, but the two differ: set tie_word_embeddings to "
                "false there if they were trained apart"
            )
        found.setdefault(name, copy)
    return found
