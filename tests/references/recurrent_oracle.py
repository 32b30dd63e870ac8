"""Sequence to sequence over Elman networks, one number after the other, from the equations of the docstrings."""

from dataclasses import dataclass

import numpy as np

from jaxlm.models.rnn_seq2seq import Seq2Seq


def named_float64(params) -> dict:
    """The same tree in float64."""
    if isinstance(params, dict):
        return {name: named_float64(leaf) for name, leaf in params.items()}
    return np.asarray(params, np.float64)


def softmax(score_S: np.ndarray) -> np.ndarray:
    exp_S = np.exp(score_S - score_S.max())
    return exp_S / exp_S.sum()


@dataclass
class Oracle:
    """One sentence at a time, no padding, no batch."""

    model: Seq2Seq
    params: dict

    def read(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits (T, V) and attention weights (T, S)."""
        model, w = self.model, self.params
        source_table = w["embedding"] if model.tie_embeddings == "all" else w["source_embedding"]
        memory_SD, final_D = self._encode(source_table[source])
        s0_D = np.tanh(self._linear("bridge", final_D))
        layers, width = model.decoder.layers, model.decoder.cell.width
        hidden_LD = list(s0_D[: layers * width].reshape(layers, width))
        top_D = s0_D[layers * width :] if model.attention_order == "before" else None
        constant_D = np.tanh(self._linear("summary", final_D)) if model.context == "every" else None
        fed_D, covered_S, logits_TV, weight_TS = np.zeros(model.width), np.zeros(len(source)), [], []
        for token in target:
            read, context_D, weight_S = [w["embedding"][token]], constant_D, None
            if model.context == "every":
                read.append(constant_D)
            if model.attention_order == "before":
                context_D, weight_S = self._look(top_D, memory_SD, covered_S)
                read.append(context_D)
            if model.input_feeding:
                read.append(fed_D)
            top_D = np.concatenate(read)
            for layer in range(layers):
                hidden_LD[layer] = self._cell("decoder", layer, 0, top_D, hidden_LD[layer])
                top_D = hidden_LD[layer]
            if model.context == "attention" and model.attention_order == "after":
                context_D, weight_S = self._look(top_D, memory_SD, covered_S)
            fed_D = self._say(context_D, top_D)
            logits_TV.append(
                (w["output"] if model.tie_embeddings == "none" else w["embedding"]) @ fed_D + w["output_bias"]
            )
            if weight_S is not None:
                covered_S = covered_S + weight_S
                weight_TS.append(weight_S)
        return np.array(logits_TV), np.array(weight_TS)

    def _say(self, context_D: np.ndarray | None, hidden_D: np.ndarray) -> np.ndarray:
        if context_D is not None:
            return np.tanh(self._linear("mix", np.concatenate([context_D, hidden_D])))
        return self._linear("mix", hidden_D) if "mix" in self.params else hidden_D

    def _encode(self, x_SD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outputs of the top layer, forward and backward side by side; the last state of every layer and direction."""
        encoder, finals = self.model.encoder, []
        for layer in range(encoder.layers):
            sides = []
            for direction in range(1 + encoder.bidirectional):
                hidden_D, out = np.zeros(encoder.cell.width), []
                for x_D in x_SD[:: -1 if direction else 1]:
                    hidden_D = self._cell("encoder", layer, direction, x_D, hidden_D)
                    out.append(hidden_D)
                sides.append(out[:: -1 if direction else 1])
                finals.append(hidden_D)
            x_SD = np.concatenate(sides, -1)
        return x_SD, np.concatenate(finals)

    def _look(self, query_D: np.ndarray, memory_SD: np.ndarray, covered_S: np.ndarray):
        model, w = self.model, self.params.get("scores", {})
        cover = w["cover"] if model.coverage else 0.0
        if model.score == "additive":
            keys_SD = memory_SD @ w["key"]["kernel"] + covered_S[:, None] * np.broadcast_to(cover, query_D.shape)[None]
            score_S = np.tanh(keys_SD + (query_D @ w["query"]["kernel"] + w["query"]["bias"])[None]) @ w["vector"]
        else:
            keys_SD = memory_SD @ w["key"]["kernel"] if model.score == "general" else memory_SD
            score_S = keys_SD @ query_D / (len(query_D) ** 0.5 if model.score == "scaled_dot" else 1.0)
            score_S = score_S + covered_S * cover
        weight_S = softmax(score_S)
        return weight_S @ memory_SD, weight_S

    def _linear(self, name: str, x_D: np.ndarray) -> np.ndarray:
        w = self.params[name]
        return x_D @ w["kernel"] + w.get("bias", 0.0)

    def _cell(self, side: str, layer: int, direction: int, x_D: np.ndarray, hidden_D: np.ndarray) -> np.ndarray:
        """h_t = tanh(W x_t + U h_{t-1} + b)."""
        w = self.params[side][f"layer_{layer}{'_reverse' if direction else ''}"]
        return np.tanh(x_D @ w["input"] + hidden_D @ w["recurrent"] + w["bias"])
