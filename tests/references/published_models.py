"""Small models of Hugging Face Transformers with random parameters, for comparisons with ours.

Import it after `pytest.importorskip("transformers")`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from jaxlm.huggingface.convert import load_pretrained

torch.set_num_threads(1)  # on models this small the threads only wait for each other: one is 30 times faster

VOCAB = 61
ENDS = (41, 42)
GPT2 = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 80, "vocab_size": VOCAB}
MARIAN = {
    "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 80,
    "pad_token_id": 60, "decoder_start_token_id": 60, "eos_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {
    "vocab_size": VOCAB, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
}  # fmt: skip


def theirs(family: str, options: dict[str, Any], seed: int = 0, scale: float = 0.25) -> Any:
    """A model with random parameters; no bias is 0, no gain 1."""
    endings = {"GPT2": "LMHeadModel", "MarianMT": "Model", "T5": "ForConditionalGeneration"}
    ending = (endings | {"Bert": "ForMaskedLM", "Roberta": "ForMaskedLM"}).get(family, "ForCausalLM")
    config = getattr(transformers, f"{family.removesuffix('MT')}Config")(**options)
    model = getattr(transformers, family + ending)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if parameter.requires_grad or "final_logits_bias" in name:
                gain = float("norm" in name.lower() or "ln_" in name) if name.endswith("weight") else 0.0
                parameter.copy_(gain + scale * torch.randn(parameter.shape, generator=generator))
    return model


def tensors(*arrays: Any) -> list[Any]:
    return [torch.as_tensor(array).long() for array in arrays]


@dataclass(frozen=True)
class Pair:
    """Their model and ours with the same parameters, and inputs padded as the family pads them."""

    their: Any
    model: Any
    params: Any
    start: int | None
    ids_BS: np.ndarray
    valid_BS: np.ndarray


def searchable(
    family: str, options: dict[str, Any], scale: float, seed: int, shape: tuple[int, int, int], folder: Path
) -> Pair:
    """Models for searches over (rows, columns, length) in which ENDS are good ends of a text; saved to the folder."""
    rows, columns, length = shape
    their, rng = theirs(family, options, seed, scale), np.random.default_rng(seed)
    their.generation_config.eos_token_id = their.generation_config.forced_eos_token_id = None
    size_B1, at_1S = rng.integers(1, columns + 1, (rows, 1)), np.arange(columns)[None]
    start = getattr(their.config, "decoder_start_token_id", None)
    valid_BS = at_1S >= columns - size_B1 if start is None else at_1S < size_B1
    ids_BS = rng.integers(1, ENDS[0], (rows, columns))
    move_ends(their, ids_BS, valid_BS, length)
    their.save_pretrained(folder)
    model, params, _ = load_pretrained(folder)
    return Pair(their, model, params, start, ids_BS, valid_BS)


def move_ends(their: Any, ids_BS: np.ndarray, valid_BS: np.ndarray, length: int) -> None:
    """Exchange the parameters of ENDS for those of two ids that half of the hypotheses say or so."""
    ids, valid = tensors(ids_BS, valid_BS)
    for place, end in enumerate(ENDS):
        asked = {"do_sample": False, "num_beams": 4, "num_return_sequences": 4, "max_new_tokens": length}
        said_RT = their.generate(ids, attention_mask=valid, pad_token_id=0, eos_token_id=ENDS[:place] or None, **asked)
        said_RT = said_RT[:, -length:].numpy()
        share = {int(i): (said_RT == i).any(-1).mean() for i in np.unique(said_RT)}
        never = {0, getattr(their.config, "decoder_start_token_id", None), *ENDS[:place]}
        better = min(share.keys() - never, key=lambda i: abs(share[i] - 0.5))
        for value in [*their.parameters(), *their.buffers()]:
            if VOCAB in value.shape:
                ids_V = value.data.movedim(value.shape.index(VOCAB), 0)
                ids_V[[end, better]] = ids_V[[better, end]].clone()
