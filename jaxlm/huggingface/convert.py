"""Conversion of models of Hugging Face Transformers, without PyTorch: a folder of `save_pretrained` <-> model, params.

    model, params, config = load_pretrained(folder)  # e.g. gpt2, Llama 3, Mistral, Helsinki-NLP/opus-mt-en-de, t5-small
    save_pretrained(folder, model, params, config)

Loaded parameters are float32.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxlm.config.display import differences
from jaxlm.config.serialization import check_config
from jaxlm.errors import UserError
from jaxlm.huggingface.architecture import Architecture
from jaxlm.huggingface.checkpoint_folder import (
    CONFIG_FILE,
    FETCH_AGAIN,
    MAX_SHARD_BYTES,
    published_file,
    read_config,
    read_tensors,
    write_folder,
)
from jaxlm.huggingface.decoders import DECODER_ARCHITECTURES
from jaxlm.huggingface.encoder_decoders import MARIAN, T5
from jaxlm.huggingface.encoders import ENCODER_ARCHITECTURES, HEAD_ARCHITECTURES
from jaxlm.huggingface.weight_map import params_from_tensors, params_to_tensors
from jaxlm.models.finetune_heads import FineTunable
from jaxlm.models.properties import RUN_FIELDS, abstract_params
from jaxlm.types import Params

ARCHITECTURES = (*DECODER_ARCHITECTURES, MARIAN, T5, *ENCODER_ARCHITECTURES, *HEAD_ARCHITECTURES)

HEAD_HINT = (
    "a language model below it, or a vector that is not tanh(W x + b) of the first position: train with pooling "
    "'first', use_pooler and num_orders = 1 on a BERT or RoBERTa"
)

SAVE_DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

FILE_DTYPES = {**SAVE_DTYPES, "float64": np.float64}

QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "quantization_config.json", "hf_quant_config.json")


def load_pretrained(
    folder: Path, arrays: Mapping[str, Any] | None = None, **model_fields: Any
) -> tuple[Any, Params, dict[str, Any]]:
    """The model of a folder, its parameters and its config. `model_fields` override fields, as in dtype="bfloat16".

    `arrays` replace those of the folder.
    Raises UserError if the architecture is unknown, or if the config and the arrays do not fit each other.
    """
    config = read_config(folder)
    _check_not_quantized(folder, config)
    if path := published_file(folder, "adapter_config.json"):
        raise UserError(
            f"{path} is of an adapter, which Transformers adds to the weights and jaxlm does not read: merge the two "
            "(merge_and_unload of PEFT) and save the model into another folder"
        )
    architecture = _architecture_of_config(config, folder)
    try:
        model = architecture.to_model(config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(
            f"{folder / CONFIG_FILE} describes no {architecture.hf_class} ({error}): {FETCH_AGAIN}"
        ) from None
    check_config(model, str(folder / CONFIG_FILE), FETCH_AGAIN)
    tensors = _with_prefix(read_tensors(folder) if arrays is None else arrays, architecture)
    _check_num_layers(model, len(tensors), folder)
    model = architecture.adjust_to_weights(_with_fields(model, model_fields), tensors.keys())
    tensors = _select_weights(tensors, architecture, model, folder)
    weight_maps = architecture.weight_maps(model)
    return model, params_from_tensors(weight_maps, abstract_params(model), tensors, str(folder)), config


def save_pretrained(
    folder: Path,
    model: Any,
    params: Params,
    config: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    array_dtypes: Mapping[str, str] | None = None,
) -> None:
    """Write a folder that `from_pretrained` reads. Raises UserError if no known architecture fits the model.

    Args:
      config: further entries of config.json, such as the id of BOS.
      dtype: "float32", "float16" or "bfloat16"; None: those of `array_dtypes`, or that of `config`, or else float32;
        and float32 for all if one of them could not hold every value exactly.
      array_dtypes: the dtype of each array in the file that the model came from, see `read_array_dtypes`.
    """
    entries = dict(config or {})
    architecture = find_architecture(model, entries.get("model_type"))
    if dtype not in (None, *SAVE_DTYPES):
        raise UserError(f"dtype {dtype!r}: expected one of {', '.join(SAVE_DTYPES)}")
    tensors = params_to_tensors(architecture.weight_maps(model), params)
    if architecture.trunk_only:
        tensors = {name.removeprefix(architecture.prefix): tensor for name, tensor in tensors.items()}
    usual = dtype or entries.get("dtype") or entries.get("torch_dtype") or "float32"
    known = {} if dtype or not array_dtypes else array_dtypes
    dtypes = {name: FILE_DTYPES.get(known.get(name, usual), np.float32) for name in tensors}
    if not dtype and not all(np.array_equal(x.astype(dtypes[name]).astype(x.dtype), x) for name, x in tensors.items()):
        dtype, dtypes = "float32", dict.fromkeys(tensors, np.float32)
    entries.pop("rope_parameters", None)
    entries |= architecture.to_config(model)
    entries |= {"architectures": [architecture.hf_class], "model_type": architecture.model_type}
    if dtype or not {"dtype", "torch_dtype"} & entries.keys():
        entries.pop("torch_dtype", None)
        entries["dtype"] = dtype or "float32"
    write_folder(
        folder, entries, {name: x.astype(dtypes[name], copy=False) for name, x in tensors.items()}, max_shard_bytes
    )


def read_array_dtypes(folder: Path) -> dict[str, str]:
    """The name of the dtype of each array of a folder."""
    architecture = _architecture_of_config(read_config(folder), folder)
    tensors = _with_prefix(read_tensors(folder), architecture)
    prefix = architecture.prefix if architecture.trunk_only else ""
    return {name.removeprefix(prefix): str(tensor.dtype) for name, tensor in tensors.items()}


def find_architecture(model: Any, model_type: str | None = None) -> Architecture:
    """The architecture, of `model_type` first, that describes exactly this model. Raises UserError with the nearest."""
    nearest: tuple[str, list[str]] | None = None
    for architecture in sorted(ARCHITECTURES, key=lambda architecture: architecture.model_type != model_type):
        try:
            described = architecture.to_model(architecture.to_config(model))
        except (UserError, AttributeError, TypeError, KeyError):
            continue
        if type(described) is not type(model):
            continue
        different = differences(_normalized(model), _normalized(described), architecture.model_type)
        if not different:
            return architecture
        if nearest is None or len(different) < len(nearest[1]):
            nearest = architecture.model_type, different
    names = ", ".join(dict.fromkeys(architecture.model_type for architecture in ARCHITECTURES))
    name, reason = type(model).__name__, "none has a model of this class"
    if isinstance(model, FineTunable):
        name, reason = f"{name} on a {type(model.model).__name__}", f"such as {HEAD_HINT}"
    elif nearest:
        reason = f"the nearest is {nearest[0]}, but for {'; '.join(nearest[1])} (train a model with those values)"
    raise UserError(f"no config.json of {names} describes this {name}: {reason}")


def _check_not_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    entries = [name for name in ("quantization_config", "compression_config") if config.get(name)]
    files = [name for name in QUANTIZATION_FILES if published_file(folder, name)]
    if entries or files:
        reason = f"config.json has {entries[0]} = {config[entries[0]]!r:.120}" if entries else f"it has {files[0]}"
        raise UserError(
            f"{folder} holds quantized weights ({reason}), which jaxlm does not read: fetch the model in float32, "
            "float16 or bfloat16; `--precision int8` quantizes it for decoding"
        )


def _check_num_layers(model: Any, num_arrays: int, folder: Path) -> None:
    """Raises UserError for more layers than arrays: their table would not end."""
    trunk = model.model if isinstance(model, FineTunable) else model
    layers = max(getattr(trunk, name, 0) for name in ("layers", "encoder_layers", "decoder_layers"))
    if layers > num_arrays:
        raise UserError(f"{folder}: config.json has {layers:,} layers, and the files hold {num_arrays:,} arrays")


def _with_fields(model: Any, model_fields: Mapping[str, Any]) -> Any:
    """The model, or the trunk of a head, with other fields."""
    if isinstance(model, FineTunable):
        return model.clone(model=_with_fields(model.model, model_fields), parent=None)
    return replace(model, **model_fields)


def _normalized(model: Any) -> Any:
    """The model as a config.json describes it: without the fields that it lacks, and with defaults as values."""
    unknown = (*RUN_FIELDS, "add_pooling_layer", "special")
    fields: dict[str, Any] = {name: None for name in unknown if hasattr(model, name)}
    if isinstance(model, FineTunable):
        fields["model"] = _normalized(model.model)
    if getattr(model, "head_dim", 0) is None:
        fields["head_dim"] = model.width // model.heads
    if getattr(model, "kv_heads", 0) is None:
        fields["kv_heads"] = model.heads
    return replace(model, **fields)


def _architecture_of_config(config: Mapping[str, Any], folder: Path) -> Architecture:
    classes, model_type = config.get("architectures") or [], config.get("model_type")
    for architecture in ARCHITECTURES:
        if architecture.hf_class in classes or (not classes and architecture.model_type == model_type):
            return architecture
    for architecture in ARCHITECTURES:
        if architecture.model_type == model_type and all(name.endswith("Model") for name in classes):
            return architecture  # the trunk alone, as in GPT2Model
    known = ", ".join(architecture.hf_class for architecture in ARCHITECTURES)
    raise UserError(f"{folder} holds {', '.join(classes) or model_type!r}; jaxlm reads {known}")


def _with_prefix(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> dict[str, np.ndarray]:
    """The arrays under current names, with the prefix of the whole model, which the file of a trunk leaves out."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # layer norms of files converted from TensorFlow
        tensors = {name.removesuffix(old) + new if name.endswith(old) else name: x for name, x in tensors.items()}
    if not any(name.startswith(architecture.prefix) for name in tensors):
        heads = ("lm_head.", "cls.", "classifier.", "final_logits_bias")
        tensors = {name if name.startswith(heads) else architecture.prefix + name: tensors[name] for name in tensors}
    return dict(tensors)


def _select_weights(
    tensors: Mapping[str, np.ndarray], architecture: Architecture, model: Any, folder: Path
) -> dict[str, np.ndarray]:
    """The arrays of the model: without copies under a second name, and without computed and unused ones."""
    known = {entry.hf_name for entry in architecture.weight_maps(model)}
    ignored = re.compile("|".join(architecture.ignored_patterns) or r"(?!)")
    selected = {name: x for name, x in tensors.items() if name in known or not ignored.fullmatch(name)}
    for alias, name in architecture.aliases(model).items():
        copy = selected.pop(alias, None)
        if copy is None:
            continue
        if name in selected and not np.array_equal(selected[name], copy):
            raise UserError(
                f"{folder}: by config.json {alias} is {name}, but the two differ: set tie_word_embeddings to false "
                "there if they were trained separately"
            )
        selected.setdefault(name, copy)
    return selected
