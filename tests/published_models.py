"""Small models of Hugging Face Transformers with random parameters, for comparisons with ours.

Import it after `pytest.importorskip("transformers")`.
"""

from typing import Any

import torch
import transformers

torch.set_num_threads(1)  # on models this small the threads only wait for each other: one is 30 times faster

VOCAB = 61
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
    ending = {"GPT2": "LMHeadModel", "MarianMT": "Model", "T5": "ForConditionalGeneration"}.get(family, "ForCausalLM")
    config = getattr(transformers, f"{family.removesuffix('MT')}Config")(**options)
    model = getattr(transformers, family + ending)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if parameter.requires_grad or "final_logits_bias" in name:
                gain = float("norm" in name or "ln_" in name) if name.endswith("weight") else 0.0
                parameter.copy_(gain + scale * torch.randn(parameter.shape, generator=generator))
    return model


def tensors(*arrays: Any) -> list[Any]:
    return [torch.as_tensor(array).long() for array in arrays]
