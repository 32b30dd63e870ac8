"""Three PyTorch versions of `jaxlm.models.encoder_decoder` (post-norm, tied embeddings, sinusoidal positions).

`Library` is `nn.Transformer`. `Written` is hand-written around `scaled_dot_product_attention`. `Tuned` is `Written`
with one product for queries, keys and values, and cheaper dropout masks. All have the same parameters and compute the
same function as ours in float32; dropout is on embeddings and sub-layer outputs only.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONGEST = 512


def sinusoids(width: int) -> Tensor:
    """(LONGEST, width), sines at even places and cosines at odd ones."""
    rate = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2) / width)
    angle = torch.arange(LONGEST)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).reshape(LONGEST, width)


class CheapDropout(nn.Module):
    """Dropout whose masks take 16 random bits an element instead of one call of the generator (p in steps of 2^-16)."""

    def __init__(self, p: float):
        super().__init__()
        self.p, self.least = p, round(p * 2**16) - 2**15

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= self.least
        return x * (keep * (1.0 / (1.0 - self.p)))


class Embedded(nn.Module):
    """The common base of the three: embeddings, positions, and the features of a batch."""

    dropout_kind: type[nn.Module] = nn.Dropout

    def __init__(self, model: Any):
        super().__init__()
        self.table = nn.Embedding(model.vocab, model.width)
        nn.init.normal_(self.table.weight, std=model.width**-0.5)
        self.register_buffer("position", sinusoids(model.width), persistent=False)
        self.drop = self.dropout_kind(model.dropout)
        self.scale = model.width**0.5

    def embed(self, ids: Tensor) -> Tensor:
        return self.drop(self.table(ids) * self.scale + self.position[: ids.shape[1]])


class Library(Embedded):
    """`nn.Transformer` without what the paper does not have: last norms, dropout inside attention and feed-forward."""

    def __init__(self, model: Any):
        super().__init__(model)
        depth = (model.encoder_layers, model.decoder_layers)
        self.stack = nn.Transformer(model.width, model.heads, *depth, model.hidden, model.dropout, batch_first=True)
        self.stack.encoder.norm = self.stack.decoder.norm = None
        for layer in (*self.stack.encoder.layers, *self.stack.decoder.layers):
            layer.dropout.p = 0.0
            for module in layer.modules():
                if isinstance(module, nn.MultiheadAttention):
                    module.dropout = 0.0

    def forward(self, source: Tensor, source_valid: Tensor, target: Tensor) -> Tensor:
        future = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        padding = {"src_key_padding_mask": ~source_valid, "memory_key_padding_mask": ~source_valid}
        return self.stack(self.embed(source), self.embed(target), tgt_mask=future, tgt_is_causal=True, **padding)


class Attention(nn.Module):
    """Projections around `scaled_dot_product_attention`; `fused` multiplies all that read the same input at once."""

    def __init__(self, width: int, heads: int, fused: bool):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor | None = None, **mask: Any) -> Tensor:
        query, key, value = (self._heads(y) for y in self._project(x, memory))
        mixed = F.scaled_dot_product_attention(query, key, value, **mask)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))

    def _project(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, ...]:
        if not self.fused:
            read = x if memory is None else memory
            return self.query(x), self.key(read), self.value(read)
        if memory is None:
            return _joint(x, self.query, self.key, self.value)
        return self.query(x), *_joint(memory, self.key, self.value)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _joint(x: Tensor, *maps: nn.Linear) -> tuple[Tensor, ...]:
    weight, bias = torch.cat([m.weight for m in maps]), torch.cat([m.bias for m in maps])
    return F.linear(x, weight, bias).chunk(len(maps), -1)


class Block(nn.Module):
    """An encoder layer, or with `crossed` a decoder layer."""

    def __init__(self, model: Any, crossed: bool, fused: bool, dropout: type[nn.Module]):
        super().__init__()
        self.attention = Attention(model.width, model.heads, fused)
        self.crossed = Attention(model.width, model.heads, fused) if crossed else None
        self.norms = nn.ModuleList(nn.LayerNorm(model.width) for _ in range(3 if crossed else 2))
        self.up, self.down = nn.Linear(model.width, model.hidden), nn.Linear(model.hidden, model.width)
        self.drop = dropout(model.dropout)

    def forward(self, x: Tensor, own: dict, memory: Tensor | None = None, other: dict | None = None) -> Tensor:
        x = self.norms[0](x + self.drop(self.attention(x, **own)))
        if self.crossed is not None:
            x = self.norms[2](x + self.drop(self.crossed(x, memory, **other)))
        return self.norms[1](x + self.drop(self.down(F.relu(self.up(x)))))


class Written(Embedded):
    """By hand, as most people would."""

    fused = False

    def __init__(self, model: Any):
        super().__init__(model)
        kind = (self.fused, self.dropout_kind)
        self.encoder = nn.ModuleList(Block(model, False, *kind) for _ in range(model.encoder_layers))
        self.decoder = nn.ModuleList(Block(model, True, *kind) for _ in range(model.decoder_layers))

    def forward(self, source: Tensor, source_valid: Tensor, target: Tensor) -> Tensor:
        seen = source_valid[:, None, None, :]
        own = {"attn_mask": seen.expand(-1, 1, source.shape[1], -1)}
        other = {"attn_mask": seen.expand(-1, 1, target.shape[1], -1)}
        memory, x = self.embed(source), self.embed(target)
        for block in self.encoder:
            memory = block(memory, own)
        for block in self.decoder:
            x = block(x, {"is_causal": True}, memory, other)
        return x


class Tuned(Written):
    """By hand, with the same liberties that we take."""

    fused, dropout_kind = True, CheapDropout


def whole_loss(features: Tensor, table: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """Mean over the rows of features, which are the real tokens."""
    return F.cross_entropy(F.linear(features, table), label, label_smoothing=smoothing)


def chunked_backward(features: Tensor, table: Tensor, label: Tensor, smoothing: float, rows: int = 512) -> Tensor:
    """The same, run backward through chunks of rows whose logits stay in cache; nothing is recomputed."""
    leaf, total = features.detach().requires_grad_(), torch.zeros(())
    for x, y in zip(leaf.split(rows), label.split(rows), strict=True):
        part = F.cross_entropy(F.linear(x, table), y, label_smoothing=smoothing, reduction="sum") / len(label)
        part.backward()
        total += part.detach()
    features.backward(leaf.grad)
    return total
