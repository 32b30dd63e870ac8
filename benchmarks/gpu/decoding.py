"""Part 8: beam search and sampling with random weights: new tokens/s, and kernels for each position."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import Session, repeats
from benchmarks.gpu.trace import record_kernels
from jaxlm.cli.device_checks import milliseconds

BOS, EOS = 2, 3


def beam(session: Session, rows: int = 64) -> None:
    """Transformer base, beam 4, sources of 30 tokens and as many new ones: sentences end at the limit."""
    import jax.numpy as jnp
    import numpy as np

    from jaxlm.decode.beam_config import Beam, BeamSearchConfig
    from jaxlm.decode.beam_search import beam_search
    from jaxlm.models.encoder_decoder import EncoderDecoder

    rows, vocab, length = session.size(rows, 2), session.size(37_000), session.size(30, 4)
    layers = session.size(6, 1)
    model = EncoderDecoder(vocab, session.size(512), 8, session.size(2048), layers, layers, dropout=0.0)
    source_BS = np.random.default_rng(0).integers(4, vocab, (rows, length))
    config = BeamSearchConfig(length, beam=Beam(num_beams=4, stopping_rule="never"))
    _measure(
        session,
        f"beam 4, {rows} sentences",
        model,
        lambda model, params, request: beam_search(model, params, request, config).tokens_BNT,
        _request(rows, length, source_BS=jnp.asarray(source_BS)),
        rows * length,
        "40k",
    )


def sampling(session: Session, rows: int) -> None:
    """GPT-2 small, top-k 40, prompts of 32 tokens and 64 new ones."""
    import numpy as np

    from jaxlm.decode.generate import GenerationConfig, generate
    from jaxlm.decode.sampling import Sampler
    from jaxlm.models.decoder import Decoder

    rows, vocab, new = session.size(rows, 2), session.size(50_304), session.size(64)
    width, heads = (session.size(n) for n in (768, 12 * 16))
    model = Decoder(vocab, width, heads // 16 or 1, 4 * width, session.size(12, 1), max_length=128)
    prompt_BP = np.random.default_rng(0).integers(4, vocab, (rows, session.size(32)))
    config = GenerationConfig(new, (), Sampler(1.0, top_k=40))
    _measure(
        session,
        f"sampling, {rows} prompts",
        model,
        lambda model, params, request: generate(model, params, request, config).tokens_BT,
        _request(rows, new, prompt_BP=prompt_BP),
        rows * new,
        "1 ms a position",
    )


def _request(rows: int, new: int, source_BS: Any = None, prompt_BP: Any = None) -> Any:
    import jax.numpy as jnp

    from jaxlm.decode.request import DecodeRequest
    from jaxlm.types import Batch

    limit_B = jnp.full(rows, new)
    if source_BS is not None:
        prompt_B1 = jnp.full((rows, 1), BOS)
        batch = Batch(source_BS=source_BS, source_valid_BS=jnp.ones(source_BS.shape, bool))
        return DecodeRequest(batch, prompt_B1, prompt_B1 > 0, limit_B)
    prompt_BP = jnp.asarray(prompt_BP)
    batch = Batch(target_BT=prompt_BP, target_valid_BT=prompt_BP >= 0)
    return DecodeRequest(batch, prompt_BP, prompt_BP >= 0, limit_B)


def _measure(session: Session, label: str, model: Any, search: Callable, request: Any, tokens: int, good: str) -> None:
    """Tokens/s in both dtypes, and the kernels for each position in bfloat16."""
    import jax

    from jaxlm.models.properties import abstract_params
    from jaxlm.pipeline.pipeline import cast_for_inference, prepare_params

    positions = int(request.limit_B[0])
    drawn = _random_params(abstract_params(model))
    for dtype in ("float32", "bfloat16"):
        cast_model, params = cast_for_inference(model, drawn, dtype)
        params = prepare_params(cast_model, params)
        run = functools.partial(search, cast_model, params, request)
        time = milliseconds(run, **repeats(session))
        session.figure(f"{label}, {dtype}", tokens / time * 1000, f"new tokens/s, {time / positions:.2f} ms each", good)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        record_kernels(session, label, Path(folder), positions)


def _random_params(shapes: Any) -> Any:
    """Normal weights of deviation 0.02."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.02, leaf.shape).astype(np.float32), shapes)
