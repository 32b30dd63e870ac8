"""Llama (Touvron et al. 2023; Dubey et al. 2024): a small one that trains on a laptop, and the shapes of Llama 3.

    jaxlm train experiments.llama:shakespeare --workdir runs/llama
    jaxlm train experiments.llama:wikitext2 --workdir runs/llama_words

`shakespeare` and `wikitext2` have the parts of Llama (rotary positions, root mean square norms, SwiGLU, shared heads
of keys, no biases) in small. The parameters of `llama_1b` and `llama_8b`, counted in `tests/test_experiments.py`, are
those of the published Llama 3.2 1B and Llama 3.1 8B; `import-hf` reads their weights. None of the four has been
trained to its end here.
"""

from jaxlm import (
    AdamW,
    Characters,
    CosineDecay,
    Decoder,
    Experiment,
    LanguageModeling,
    Llama3Scaling,
    Rotary,
    SentencePiece,
    TextFile,
    Windows,
    run_this_experiment,
)

CHARACTERS, PIECES, PUBLISHED = 69, 8192, 128_256


def shakespeare() -> Experiment:
    """Characters of tiny shakespeare: 4 layers of 4 heads with 2 of keys, width 128, 2,000 steps of 12 x 64."""
    train, valid = (TextFile("tinyshakespeare/input.txt.gz", "whole", *part) for part in ((0.0, 0.9), (0.9, 1.0)))
    return Experiment(
        task=LanguageModeling(train, valid, valid, windows=Windows(64, 64, append_eos=False), sample_tokens=300),
        tokenizer=Characters(CHARACTERS),
        model=_llama(CHARACTERS, 128, 4, 2, 344, 4, Rotary(), max_length=1024),
        batching=Windows(64, 12, carry_state=False, append_eos=False),
        optimizer=AdamW(CosineDecay(peak=2e-3, warmup=100), b2=0.99, eps=1e-8, weight_decay=0.1, clip=1.0),
        steps=2000,
        evaluate_every=250,
        checkpoint_every=250,
        best_metric="valid/nll",
    )


def wikitext2() -> Experiment:
    """Pieces of WikiText-2 (Merity et al. 2017): 6 layers of 8 heads with 2 of keys, width 256, 4,000 steps."""
    train, valid = (TextFile(f"wikitext2/{split}.txt.gz") for split in ("train", "valid"))
    return Experiment(
        task=LanguageModeling(train, valid, valid, windows=Windows(256, 8)),
        tokenizer=SentencePiece(PIECES, model_type="bpe"),
        model=_llama(PIECES, 256, 8, 2, 688, 6, Rotary(), max_length=2048, dropout=0.1),
        batching=Windows(256, 16, carry_state=False),
        optimizer=AdamW(CosineDecay(peak=1e-3, warmup=200), b2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0),
        steps=4000,
        evaluate_every=500,
        checkpoint_every=500,
        best_metric="valid/nll",
    )


def llama_1b() -> Experiment:
    """Llama 3.2 1B: 16 layers of 32 heads with 8 of keys, width 2048, tied; 1,235,814,400 parameters."""
    scaled = Rotary(500_000.0, Llama3Scaling(factor=32.0))
    return _large(_llama(PUBLISHED, 2048, 32, 8, 8192, 16, scaled, tie=True), peak=4e-4)


def llama_8b() -> Experiment:
    """Llama 3.1 8B: 32 layers of 32 heads with 8 of keys, width 4096; 8,030,261,248 parameters."""
    scaled = Rotary(500_000.0, Llama3Scaling(factor=8.0))
    return _large(_llama(PUBLISHED, 4096, 32, 8, 14_336, 32, scaled), peak=3e-4)


def _llama(
    vocab: int, width: int, heads: int, kv_heads: int, hidden: int, layers: int, rotary: Rotary, tie: bool = False,
    max_length: int = 131_072, dropout: float = 0.0,
) -> Decoder:  # fmt: skip
    large = width >= 1024
    return Decoder(
        vocab, width, heads, hidden, layers, kv_heads=kv_heads, position="rotary", max_length=max_length, rotary=rotary,
        norm_kind="rms", activation="swiglu", qkv_bias=False, out_bias=False, ffn_bias=False, tie_embeddings=tie,
        dropout=dropout,
        init_std=0.02 if large else 0.06, dtype="bfloat16" if large else "float32", scan=large, remat=large,
    )  # fmt: skip


def _large(model: Decoder, peak: float) -> Experiment:
    train, valid = (TextFile(f"openwebtext/{split}.txt.gz") for split in ("train", "valid"))
    return Experiment(
        task=LanguageModeling(train, valid, valid, windows=Windows(8192, 8)),
        tokenizer=SentencePiece(PUBLISHED, model_type="bpe"),
        model=model,
        batching=Windows(8192, 512, carry_state=False),
        optimizer=AdamW(CosineDecay(peak=peak, warmup=8000), b2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0),
        steps=1_200_000,
        grad_accum=64,
        evaluate_every=1000,
        checkpoint_every=1000,
        best_metric="valid/nll",
    )


if __name__ == "__main__":
    run_this_experiment()
