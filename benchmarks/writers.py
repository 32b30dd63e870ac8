"""Sampling from GPT-2 small with the same random weights in three programs: jaxlm, Hugging Face, CTranslate2.

`start(name, folder)` is a contestant of `benchmarks.contest`, as in `benchmarks.translators`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Run, cores
from benchmarks.translators import random_params, timed

VOCAB, END, TOP_K = 50_257, 50_256, 40


def draw(folder: Path, rows: int, length: int, new: int, beam: int) -> None:
    """A random model of GPT-2's smallest size (124 million parameters) and random prompts."""
    from jaxlm.huggingface.convert import save_pretrained
    from jaxlm.models.decoder import Decoder

    model = Decoder(
        VOCAB, 768, 12, 3072, 12, position="learned", max_length=1024, activation="gelu_tanh", tie_embeddings=True
    )
    save_pretrained(folder / "model", model, random_params(model))
    prompt_BP = np.random.default_rng(0).integers(0, END, (rows, length))
    np.savez(folder / "batch.npz", ids=prompt_BP, new=new, beam=beam)


def start(name: str, folder: Path) -> tuple[dict[str, Any], Run]:
    """The contestant `name`, warm."""
    with np.load(folder / "batch.npz") as stored:
        prompt_BP, new = stored["ids"], int(stored["new"])
    kind, _, variant = name.partition("_")
    make = {"ours": _ours, "huggingface": _huggingface, "ctranslate2": _ctranslate2}[kind]
    return timed(make(folder, prompt_BP, new, variant))


def _ours(folder: Path, prompt_BP: np.ndarray, new: int, variant: str) -> Any:
    from jaxlm import runtime

    runtime.configure_process()
    import jax.numpy as jnp

    from jaxlm.decode.generate import GenerationConfig, generate
    from jaxlm.decode.request import DecodeRequest
    from jaxlm.decode.sampling import Sampler
    from jaxlm.huggingface.convert import load_pretrained
    from jaxlm.pipeline.pipeline import cast_for_inference, prepare_params
    from jaxlm.types import Batch

    net, params, _ = load_pretrained(folder / "model")
    net, params = cast_for_inference(net, params, variant or "float32")
    params = prepare_params(net, params)
    prompt_BP = jnp.asarray(prompt_BP)
    batch = Batch(target_BT=prompt_BP, target_valid_BT=prompt_BP >= 0)
    request = DecodeRequest(batch, prompt_BP, prompt_BP >= 0, jnp.full(len(prompt_BP), new))
    config = GenerationConfig(new, (), Sampler(1.0, top_k=TOP_K))

    def write() -> np.ndarray:
        return np.asarray(generate(net, params, request, config).tokens_BT)

    return write


def _gpt2(folder: Path) -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder / "model").eval()


def _huggingface(folder: Path, prompt_BP: np.ndarray, new: int, variant: str) -> Any:
    import torch

    torch.set_num_threads(cores())
    net, ids = _gpt2(folder), torch.from_numpy(prompt_BP)
    options = {"do_sample": True, "top_k": TOP_K, "min_new_tokens": new, "max_new_tokens": new, "pad_token_id": END}

    def write() -> np.ndarray:
        with torch.inference_mode():
            texts = net.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return texts[:, ids.shape[1] :].numpy()

    return write


def _ctranslate2(folder: Path, prompt_BP: np.ndarray, new: int, variant: str) -> Any:
    import ctranslate2

    path = folder / "ctranslate2"
    if not path.exists():
        _convert(folder, path)
    generator = ctranslate2.Generator(str(path), compute_type=variant or "float32", intra_threads=cores())
    prompts = [[str(i) for i in row] for row in prompt_BP]
    options = {"sampling_topk": TOP_K, "min_length": new, "max_length": new, "include_prompt_in_result": False}

    def write() -> list[list[int]]:
        results = generator.generate_batch(prompts, max_batch_size=len(prompts), **options)
        return [result.sequences_ids[0] for result in results]

    return write


def _convert(folder: Path, path: Path) -> None:
    from ctranslate2.converters.transformers import GPT2Loader

    spec = GPT2Loader().get_model_spec(_gpt2(folder))
    spec.register_vocabulary([str(i) for i in range(VOCAB)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = str(END)
    spec.validate()
    spec.optimize()
    path.mkdir()
    spec.save(str(path))
