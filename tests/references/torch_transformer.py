"""PyTorch's encoder and decoder layers, with the embeddings of the paper and the weights of an `EncoderDecoder`."""

from typing import Any

import numpy as np

from jaxlm.models.encoder_decoder import EncoderDecoder

LAYERS = {
    "encoder": {"attention": "self_attn", "attention_residual": "norm1", "ffn_residual": "norm2"},
    "decoder": {
        "attention": "self_attn",
        "source_attention": "multihead_attn",
        "attention_residual": "norm1",
        "source_residual": "norm2",
        "ffn_residual": "norm3",
    },
}


def named(params: Any) -> dict[str, np.ndarray]:
    """Parameters (or their gradients) of an `EncoderDecoder` under the names and in the shapes of `reference`."""
    found = {name: np.asarray(leaf) for name, leaf in params.items() if name.endswith(("embedding", "output"))}
    for side, parts in LAYERS.items():
        stack = params[side]["layers"]
        for depth in range(len(stack["ffn"]["up"]["bias"])):
            for ours, theirs in parts.items():
                one = {k: {n: np.asarray(leaf[depth]) for n, leaf in v.items()} for k, v in stack[ours].items()}
                found |= _attention(one, f"{side}.layers.{depth}.{theirs}.") if "query" in one else {}
                found |= _norm(one["norm"], f"{side}.layers.{depth}.{theirs}.") if "norm" in one else {}
            for ours, theirs in (("up", "linear1"), ("down", "linear2")):
                found[f"{side}.layers.{depth}.{theirs}.weight"] = np.asarray(stack["ffn"][ours]["kernel"][depth]).T
                found[f"{side}.layers.{depth}.{theirs}.bias"] = np.asarray(stack["ffn"][ours]["bias"][depth])
        if f"{side}_norm" in params:
            found |= _norm(params[f"{side}_norm"], f"{side}.norm.")
    return found


def _attention(one: Any, prefix: str) -> dict[str, np.ndarray]:
    return {
        prefix + "in_proj_weight": np.concatenate([one[name]["kernel"].T for name in ("query", "key", "value")]),
        prefix + "in_proj_bias": np.concatenate([one[name]["bias"] for name in ("query", "key", "value")]),
        prefix + "out_proj.weight": one["out"]["kernel"].T,
        prefix + "out_proj.bias": one["out"]["bias"],
    }


def _norm(one: Any, prefix: str) -> dict[str, np.ndarray]:
    return {prefix + "weight": np.asarray(one["scale"]), prefix + "bias": np.asarray(one["bias"])}


def reference(config: EncoderDecoder, params: Any) -> Any:
    """A `torch.nn.Module`: batch -> logits, sinusoidal positions, no dropout."""
    import torch

    pre = config.norm == "pre"
    sizes = (config.width, config.heads, config.hidden, 0.0, config.activation, 1e-5, True, pre)

    class Reference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            norms = [torch.nn.LayerNorm(config.width) if pre else None for _ in range(2)]
            encoder, decoder = torch.nn.TransformerEncoderLayer(*sizes), torch.nn.TransformerDecoderLayer(*sizes)
            self.encoder = torch.nn.TransformerEncoder(encoder, config.encoder_layers, norms[0], False)
            self.decoder = torch.nn.TransformerDecoder(decoder, config.decoder_layers, norms[1])
            for name in ("embedding", "source_embedding", "output"):
                if name in params:
                    self.register_parameter(name, torch.nn.Parameter(torch.empty(config.vocab, config.width)))

        def embed(self, table, ids):
            position, channel = np.mgrid[: ids.shape[1], : config.width]
            angle = position / 10000 ** (channel // 2 * 2 / config.width)
            encoding = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
            return table[torch.tensor(ids).long()] * config.width**0.5 + torch.tensor(encoding).float()

        def forward(self, batch):
            source_padding, target_padding = torch.tensor(~batch.source_valid_BS), torch.tensor(~batch.target_valid_BT)
            future = torch.triu(torch.ones(2 * batch.target_BT.shape[1:], dtype=torch.bool), 1)
            x = self.embed(getattr(self, "source_embedding", self.embedding), batch.source_BS)
            memory = self.encoder(x, src_key_padding_mask=source_padding)
            y = self.decoder(
                self.embed(self.embedding, batch.target_BT), memory, future,
                tgt_key_padding_mask=target_padding, memory_key_padding_mask=source_padding,
            )  # fmt: skip
            return y @ getattr(self, "output", self.embedding).T

    module = Reference()
    module.load_state_dict({name: torch.tensor(value) for name, value in named(params).items()})
    return module
