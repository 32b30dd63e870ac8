"""One translation Transformer with one set of random weights in three programs: jaxlm, Hugging Face, CTranslate2.

`start(name, folder)` is a contestant of `benchmarks.contest`: one step translates the batch in `folder`. The weights
are jaxlm's parameters, stored by the parent as `params.npz`; PyTorch and CTranslate2 are imported here alone.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Run, cores

VOCAB, WIDTH, HEADS, HIDDEN, LAYERS = 32_000, 512, 8, 2048, 6
BOS, EOS = 2, 3
NAMES = ("ours", "ours_bfloat16", "ours_int8", "ours_int8_dynamic", "huggingface", "ctranslate2", "ctranslate2_int8")


def model() -> Any:
    """Transformer base, post-norm, one table."""
    from jaxlm.models.encoder_decoder import EncoderDecoder

    return EncoderDecoder(VOCAB, WIDTH, HEADS, HIDDEN, LAYERS, LAYERS, dropout=0.0)


def draw(folder: Path, rows: int, source: int, new: int, beam: int) -> None:
    """Random parameters, a random batch, and what is asked of it."""
    import jax

    from jaxlm.workdir import abstract_params

    rng = np.random.default_rng(0)
    arrays = {}
    for path, leaf in jax.tree.leaves_with_path(abstract_params(model())):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        gain = name.endswith("scale")
        arrays[name] = (gain + rng.normal(0, 0.02 if leaf.ndim > 2 or gain else 0.04, leaf.shape)).astype(np.float32)
    np.savez(folder / "params.npz", **arrays)
    source_BS = rng.integers(4, VOCAB, (rows, source))
    source_BS[:, -1] = EOS
    np.savez(folder / "batch.npz", source=source_BS, new=new, beam=beam)


def start(name: str, folder: Path) -> tuple[dict[str, Any], Run]:
    """The contestant `name`, warm."""
    with np.load(folder / "batch.npz") as stored:
        source_BS, new, beam = stored["source"], int(stored["new"]), int(stored["beam"])
    kind, _, variant = name.partition("_")
    make = {"ours": _ours, "huggingface": _huggingface, "ctranslate2": _ctranslate2}[kind]
    translate = make(folder, source_BS, new, beam, variant)
    begun = time.perf_counter()
    tokens_BT = translate()
    facts = {"first_seconds": time.perf_counter() - begun, "tokens": np.asarray(tokens_BT).tolist()}

    def run(steps: int) -> list[float]:
        seconds = []
        for _ in range(steps):
            begun = time.perf_counter()
            translate()
            seconds.append(time.perf_counter() - begun)
        return seconds

    return facts, run


def _params(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "params.npz") as stored:
        return dict(stored)


def _ours(folder: Path, source_BS: np.ndarray, new: int, beam: int, variant: str) -> Any:
    from jaxlm import runtime

    runtime.prepare()
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    from jaxlm.decode.beam import beam_search
    from jaxlm.decode.options import Beam
    from jaxlm.nn.quantized import at_precision
    from jaxlm.types import Batch

    params = jax.tree.map(jnp.asarray, unflatten_dict(_params(folder), sep="/"))
    net, params = at_precision(model(), params, variant or "float32")
    rows = len(source_BS)
    batch = Batch(source_BS=jnp.asarray(source_BS), source_valid_BS=jnp.ones(source_BS.shape, bool))
    prompt_B1, limit_B = jnp.full((rows, 1), BOS), jnp.full(rows, new)
    options = Beam(size=beam, stop="heuristic", min_length=new)

    def translate() -> np.ndarray:
        found = beam_search(net, params, batch, prompt_B1, prompt_B1 > 0, limit_B, length=new, beam=options)
        return np.asarray(found.tokens_BNT[:, 0])

    return translate


def marian(folder: Path) -> Any:
    """The same weights as a `transformers.MarianMTModel`."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(
        vocab_size=VOCAB, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, activation_function="relu", scale_embedding=True,
        max_position_embeddings=256, pad_token_id=0, bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=BOS,
        forced_eos_token_id=None,
    )  # fmt: skip
    net = MarianMTModel(config).eval()
    missing, unexpected = net.load_state_dict(
        {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in _marian_names(_params(folder)).items()},
        strict=False,
    )
    assert not unexpected and all("lm_head" in x or "embed_" in x or "bias" in x for x in missing), (
        missing,
        unexpected,
    )
    net.tie_weights()
    return net


def _marian_names(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """jaxlm's parameters by Marian's names."""
    from jaxlm.nn.position import sinusoids

    table = np.asarray(sinusoids(np.arange(256), WIDTH))
    named = {"model.shared.weight": params["embedding"]}
    for stack in ("encoder", "decoder"):
        named[f"model.{stack}.embed_positions.weight"] = table
        for depth in range(LAYERS):
            for name, theirs in _LAYER.items():
                for kind, suffix in (("kernel", "weight"), ("bias", "bias"), ("scale", "weight")):
                    values = params.get(f"{stack}/layers/{name}/{kind}")
                    if values is not None:
                        one = values[depth].T if kind == "kernel" else values[depth]
                        named[f"model.{stack}.layers.{depth}.{theirs}.{suffix}"] = one
    return named


_LAYER = {
    **{f"attention/{ours}": f"self_attn.{theirs}" for ours, theirs in
       (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj"))},
    **{f"source_attention/{ours}": f"encoder_attn.{theirs}" for ours, theirs in
       (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj"))},
    "ffn/up": "fc1",
    "ffn/down": "fc2",
    "attention_residual/norm": "self_attn_layer_norm",
    "source_residual/norm": "encoder_attn_layer_norm",
    "ffn_residual/norm": "final_layer_norm",
}  # fmt: skip


def _huggingface(folder: Path, source_BS: np.ndarray, new: int, beam: int, variant: str) -> Any:
    import torch

    torch.set_num_threads(cores())
    net, ids = marian(folder), torch.from_numpy(source_BS)
    options = {"num_beams": beam, "min_new_tokens": new, "max_new_tokens": new, "early_stopping": False}

    def translate() -> np.ndarray:
        with torch.inference_mode():
            found = net.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
        return found[:, 1:].numpy()

    return translate


def _ctranslate2(folder: Path, source_BS: np.ndarray, new: int, beam: int, variant: str) -> Any:
    import ctranslate2

    path = folder / "ctranslate2"
    if not path.exists():
        _convert(folder, path)
    translator = ctranslate2.Translator(
        str(path), compute_type=variant or "float32", inter_threads=1, intra_threads=cores()
    )
    lines = [[str(i) for i in row] for row in source_BS]
    options = {"beam_size": beam, "min_decoding_length": new, "max_decoding_length": new, "max_batch_size": len(lines)}

    def translate() -> list[list[int]]:
        found = translator.translate_batch(lines, **options)
        return [[int(word) for word in one.hypotheses[0]] for one in found]

    return translate


def _convert(folder: Path, path: Path) -> None:
    from ctranslate2.converters.transformers import BartLoader

    net = marian(folder)
    net.config.normalize_before, net.config.normalize_embedding = False, False
    spec = BartLoader().get_model_spec(net)
    words = [str(i) for i in range(VOCAB)]
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.config.bos_token = spec.config.decoder_start_token = str(BOS)
    spec.config.eos_token, spec.config.unk_token = str(EOS), "1"
    spec.validate()
    spec.optimize()
    path.mkdir()
    spec.save(str(path))
