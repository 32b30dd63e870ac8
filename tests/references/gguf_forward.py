"""A forward pass of a Llama in NumPy on the arrays of a GGUF file as they are: rotary pairs lie side by side."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxlm.huggingface.gguf import GGUFFile


def rms_norm(x_TD: np.ndarray, scale_D: np.ndarray, epsilon: float) -> np.ndarray:
    return x_TD / np.sqrt((x_TD**2).mean(-1, keepdims=True) + epsilon) * scale_D


def rotate(x_TNH: np.ndarray, theta: float, side_by_side: bool) -> np.ndarray:
    """Pairs are (0, 1), (2, 3), ... in the file, and (0, H/2), (1, H/2 + 1), ... in Transformers."""
    size = x_TNH.shape[-1]
    angle_T1H = np.arange(len(x_TNH))[:, None, None] * theta ** (-np.arange(0, size, 2) / size)
    pair = (
        x_TNH[..., ::2] + 1j * x_TNH[..., 1::2]
        if side_by_side
        else x_TNH[..., : size // 2] + 1j * x_TNH[..., size // 2 :]
    )
    turned = pair * np.exp(1j * angle_T1H)
    if not side_by_side:
        return np.concatenate([turned.real, turned.imag], axis=-1)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x_TNH.shape)


def logprob(file: GGUFFile, ids: list[int], side_by_side: bool = True) -> np.ndarray:
    """Log-probabilities_TV of the next id; `side_by_side=False` forgets that the rows are permuted."""
    given: Any = {name.removeprefix("llama."): value for name, value in file.metadata.items()}
    arrays = {name: replace(array, rotary_heads=0) for name, array in file.arrays.items()}
    heads, kv_heads = given["attention.head_count"], given["attention.head_count_kv"]
    epsilon, theta = given["attention.layer_norm_rms_epsilon"], given["rope.freq_base"]
    embedding_VD = np.asarray(arrays["token_embd.weight"], np.float64)
    x_TD, causal_TT = embedding_VD[ids], np.tril(np.ones((len(ids), len(ids)), bool))
    for layer in range(given["block_count"]):

        def weight(name: str, layer: int = layer) -> np.ndarray:
            return np.asarray(arrays[f"blk.{layer}.{name}.weight"], np.float64)

        y_TD = rms_norm(x_TD, weight("attn_norm"), epsilon)
        query, key, value = (
            (y_TD @ weight(f"attn_{name}").T).reshape(len(ids), count, -1)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        query, key = (rotate(x, theta, side_by_side) for x in (query, key))
        key, value = (np.repeat(x, heads // kv_heads, axis=1) for x in (key, value))
        score_NTS = np.einsum("tnh,snh->nts", query, key) / np.sqrt(query.shape[-1])
        score_NTS = np.exp(np.where(causal_TT, score_NTS, -np.inf) - score_NTS.max(-1, keepdims=True))
        mixed = np.einsum("nts,snh->tnh", score_NTS / score_NTS.sum(-1, keepdims=True), value).reshape(len(ids), -1)
        x_TD = x_TD + mixed @ weight("attn_output").T
        y_TD = rms_norm(x_TD, weight("ffn_norm"), epsilon)
        gate = y_TD @ weight("ffn_gate").T
        x_TD = x_TD + (gate / (1 + np.exp(-gate)) * (y_TD @ weight("ffn_up").T)) @ weight("ffn_down").T
    logit_TV = rms_norm(x_TD, np.asarray(arrays["output_norm.weight"], np.float64), epsilon) @ embedding_VD.T
    logit_TV -= logit_TV.max(-1, keepdims=True)
    return logit_TV - np.log(np.exp(logit_TV).sum(-1, keepdims=True))
