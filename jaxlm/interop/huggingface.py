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
from jaxlm.interop.correspondence import from_tensors, to_tensors
from jaxlm.interop.decoder_families import GPT2, LLAMA, MISTRAL, QWEN2, QWEN3
from jaxlm.interop.encoder_decoder_families import MARIAN, T5
from jaxlm.interop.encoder_families import BERT, BERT_PAIRS, BERT_TRUNK, ROBERTA, ROBERTA_TRUNK
from jaxlm.interop.encoder_heads import HEADED
from jaxlm.interop.family import Family
from jaxlm.interop.folder import SHARD_BYTES, read_config, read_tensors, write_folder
from jaxlm.models.headed import Headed
from jaxlm.models.renumbered import HOW
from jaxlm.types import Params
from jaxlm.workdir import abstract_params

FAMILIES = (
    GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, MARIAN, T5, BERT, ROBERTA, BERT_PAIRS, BERT_TRUNK, ROBERTA_TRUNK, *HEADED,
)  # fmt: skip
HEADED_ALIKE = (
    "a language model below it, or a vector that is not tanh(W x + b) of the first position: train with pooling "
    "'first', squash and orders = 1 on a BERT or RoBERTa"
)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def load(folder: Path, **how: Any) -> tuple[Any, Params, dict[str, Any]]:
    """The model of a folder, its parameters, and its config. `how` sets fields of the model, as in dtype="bfloat16".

    Raises UserError where the architecture is unknown, or the config and the arrays do not fit each other.
    """
    config = read_config(folder)
    family = _family(config, folder)
    try:
        model = family.to_model(config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    tensors = _prefixed(read_tensors(folder), family)
    model = family.stored(_run(model, how), tensors.keys())
    tensors = _canonical(tensors, family, model, folder)
    return model, from_tensors(family.table(model), abstract_params(model), tensors, str(folder)), config


def save(
    folder: Path,
    model: Any,
    params: Params,
    config: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder that `from_pretrained` reads. `config` is what else shall stand in config.json (ids of BOS, ...).

    dtype: "float32", "float16" or "bfloat16"; None: the config's, or else float32. Raises UserError on a model that no
    known family can say.
    """
    known = dict(config or {})
    family = family_of(model, known.get("model_type"))
    dtype = dtype or known.get("dtype") or known.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    for stale in ("torch_dtype", "rope_parameters"):
        known.pop(stale, None)
    ours = {"architectures": [family.architecture], "model_type": family.kind, "dtype": dtype}
    tensors = to_tensors(family.table(model), params, DTYPES[dtype])
    if family.bare:
        tensors = {name.removeprefix(family.prefix): tensor for name, tensor in tensors.items()}
    write_folder(folder, {**known, **family.to_config(model), **ours}, tensors, shard_bytes)


def family_of(model: Any, kind: str | None = None) -> Family:
    """The family whose config says exactly this model, `kind` first. Raises UserError if there is none: the nearest one
    and what would have to change."""
    nearest: tuple[str, list[str]] | None = None
    for family in sorted(FAMILIES, key=lambda family: family.kind != kind):
        try:
            same = family.to_model(family.to_config(model))
        except (UserError, AttributeError, TypeError, KeyError):
            continue
        if type(same) is not type(model):
            continue
        apart = differences(_settled(model), _settled(same), family.kind)
        if not apart:
            return family
        if nearest is None or len(apart) < len(nearest[1]):
            nearest = family.kind, apart
    names = ", ".join(dict.fromkeys(family.kind for family in FAMILIES))
    found, why = type(model).__name__, "nothing of its kind"
    if isinstance(model, Headed):
        found, why = f"{found} on a {type(model.model).__name__}", f"such as {HEADED_ALIKE}"
    elif nearest:
        why = f"the nearest is {nearest[0]}, but for {'; '.join(nearest[1])} (fields of the model, to be trained so)"
    raise UserError(f"no config.json of {names} says this {found}: {why}")


def _run(model: Any, how: Mapping[str, Any]) -> Any:
    """The model with other fields of how it is run; of a head, the model that it stands on."""
    if isinstance(model, Headed):
        return model.clone(model=_run(model.model, how), parent=None)
    return replace(model, **how)


def _settled(model: Any) -> Any:
    """The model without how it is run and what the arrays alone tell, and with defaults spelled out."""
    fields: dict[str, Any] = {name: None for name in (*HOW, "pooled") if hasattr(model, name)}
    if isinstance(model, Headed):
        fields["model"] = _settled(model.model)
    if getattr(model, "head_width", 0) is None:
        fields["head_width"] = model.width // model.heads
    if getattr(model, "kv_heads", 0) is None:
        fields["kv_heads"] = model.heads
    return replace(model, **fields)


def _family(config: Mapping[str, Any], folder: Path) -> Family:
    named, kind = config.get("architectures") or [], config.get("model_type")
    for family in FAMILIES:
        if family.architecture in named or (not named and family.kind == kind):
            return family
    for family in FAMILIES:
        if family.kind == kind and all(name.removesuffix("Model") + "Model" == name for name in named):
            return family  # the trunk alone, as in GPT2Model
    known = ", ".join(family.architecture for family in FAMILIES)
    raise UserError(f"{folder} holds {', '.join(named) or kind!r}; jaxlm reads {known}")


def _prefixed(tensors: Mapping[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """The arrays under today's names, with the prefix of the whole model where those of its trunk lack it."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # layer norms of files that began in TensorFlow
        tensors = {name.removesuffix(old) + new if name.endswith(old) else name: x for name, x in tensors.items()}
    if not any(name.startswith(family.prefix) for name in tensors):
        bare = ("lm_head.", "cls.", "classifier.", "final_logits_bias")
        tensors = {name if name.startswith(bare) else family.prefix + name: tensors[name] for name in tensors}
    return dict(tensors)


def _canonical(tensors: Mapping[str, np.ndarray], family: Family, model: Any, folder: Path) -> dict[str, np.ndarray]:
    """The arrays that the table names: without copies, and without what is computed or not used."""
    known, rules = {entry.theirs for entry in family.table(model)}, family.ignored
    found = {
        name: x for name, x in tensors.items() if name in known or not any(re.fullmatch(rule, name) for rule in rules)
    }
    for other, name in family.aliases(model).items():
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
