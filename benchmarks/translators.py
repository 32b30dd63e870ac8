"""A translation Transformer with the same random weights in three programs: jaxlm, Hugging Face, CTranslate2.

`start(name, folder)` is a contestant of `benchmarks.contest`: one step translates the batch in `folder`, which holds
the model in Hugging Face's format. PyTorch and CTranslate2 are imported only here.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Run, cores

VOCAB, WIDTH, HEADS, HIDDEN, LAYERS = 32_000, 512, 8, 2048, 6
BOS, EOS = 2, 3


def draw(folder: Path, rows: int, length: int, new: int, beam: int) -> None:
    """Write a random Transformer base (post-norm, tied embeddings), a random batch and the decoding options."""
    from jaxlm.huggingface.convert import save_pretrained
    from jaxlm.models.encoder_decoder import EncoderDecoder

    model = EncoderDecoder(
        VOCAB, WIDTH, HEADS, HIDDEN, LAYERS, LAYERS, position="sinusoidal_halves", max_length=256, dropout=0.0,
        logit_bias=True,
    )  # fmt: skip
    ids = {"pad_token_id": 0, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": BOS}
    params = random_params(model)
    params["embedding"][EOS] = 0  # its logit is 0, never among the best, so that every text has the same length
    params["output_bias"][:] = 0
    save_pretrained(folder / "model", model, params, ids | {"forced_eos_token_id": None})
    rng = np.random.default_rng(0)
    source_BS = rng.integers(4, VOCAB, (rows, length))
    source_BS[:, -1] = EOS
    np.savez(folder / "batch.npz", ids=source_BS, new=new, beam=beam)


def random_params(model: Any) -> Any:
    """Normal weights with deviation 0.02 (layers) and 0.04 (embeddings); scales near 1."""
    import jax

    from jaxlm.models.properties import abstract_params

    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: Any) -> np.ndarray:
        gain = path[-1].key == "scale"
        table = path[-1].key == "embedding"
        return (gain + rng.normal(0, 0.04 if table else 0.02, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(model))


def start(name: str, folder: Path) -> tuple[dict[str, Any], Run]:
    """The contestant `name`, warm."""
    with np.load(folder / "batch.npz") as stored:
        source_BS, new, beam = stored["ids"], int(stored["new"]), int(stored["beam"])
    kind, _, variant = name.partition("_")
    make = {"ours": _ours, "huggingface": _huggingface, "ctranslate2": _ctranslate2}[kind]
    return timed(make(folder, source_BS, new, beam, variant))


def timed(answer: Callable[[], Any]) -> tuple[dict[str, Any], Run]:
    """The seconds and tokens of a first call, and a function that times further calls."""
    begin = time.perf_counter()
    tokens_BT = answer()
    facts = {"first_seconds": time.perf_counter() - begin, "tokens": np.asarray(tokens_BT).tolist()}

    def run(steps: int) -> list[float]:
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            answer()
            seconds.append(time.perf_counter() - begin)
        return seconds

    return facts, run


def _ours(folder: Path, source_BS: np.ndarray, new: int, beam: int, variant: str) -> Any:
    from jaxlm import runtime

    runtime.configure_process()
    import jax.numpy as jnp

    from jaxlm.decode.beam_config import Beam, BeamSearchConfig
    from jaxlm.decode.beam_search import beam_search
    from jaxlm.decode.request import DecodeRequest
    from jaxlm.huggingface.convert import load_pretrained
    from jaxlm.pipeline.pipeline import cast_for_inference, prepare_params
    from jaxlm.types import Batch

    if variant == "lstm":
        net, params = _recurrent()
    else:
        net, params, _ = load_pretrained(folder / "model")
        net, params = cast_for_inference(net.clone(logit_bias=False), params, variant or "float32")
        del params["output_bias"]  # zeros, which CTranslate2 leaves out too
    params = prepare_params(net, params)
    rows = len(source_BS)
    batch = Batch(source_BS=jnp.asarray(source_BS), source_valid_BS=jnp.ones(source_BS.shape, bool))
    prompt_B1 = jnp.full((rows, 1), BOS)
    request = DecodeRequest(batch, prompt_B1, prompt_B1 > 0, jnp.full(rows, new))
    config = BeamSearchConfig(new, beam=Beam(num_beams=beam, stopping_rule="heuristic"))

    def translate() -> np.ndarray:
        return np.asarray(beam_search(net, params, request, config).tokens_BNT[:, 0])

    return translate


def _recurrent() -> tuple[Any, Any]:
    """An attention LSTM with as many parameters as the Transformer, 60 million."""
    from jaxlm.models.rnn_seq2seq import Seq2Seq
    from jaxlm.nn.rnn.cells import LSTM
    from jaxlm.nn.rnn.layers import Recurrent

    encoder, decoder = Recurrent(LSTM(512), layers=2, bidirectional=True), Recurrent(LSTM(1024), layers=2)
    net = Seq2Seq(VOCAB, WIDTH, encoder, decoder)
    params = random_params(net)
    params["embedding"][EOS] = 0
    return net, params


def _marian(folder: Path) -> Any:
    from transformers import MarianMTModel

    return MarianMTModel.from_pretrained(folder / "model").eval()


def _huggingface(folder: Path, source_BS: np.ndarray, new: int, beam: int, variant: str) -> Any:
    import torch

    torch.set_num_threads(cores())
    net, ids = _marian(folder), torch.from_numpy(source_BS)
    options = {"num_beams": beam, "max_new_tokens": new, "early_stopping": False}

    def translate() -> np.ndarray:
        with torch.inference_mode():
            texts = net.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
        return texts[:, 1:].numpy()

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
    options = {"beam_size": beam, "max_decoding_length": new, "max_batch_size": len(lines)}

    def translate() -> list[list[int]]:
        results = translator.translate_batch(lines, **options)
        return [[int(word) for word in result.hypotheses[0]] for result in results]

    return translate


def _convert(folder: Path, path: Path) -> None:
    from ctranslate2.converters.transformers import BartLoader

    net = _marian(folder)
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
