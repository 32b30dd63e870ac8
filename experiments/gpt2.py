"""GPT-2 (Radford et al. 2019) from nothing, with the optimizer of GPT-3 (Brown et al. 2020, table 2.1).

    jaxlm train experiments.gpt2:small --workdir runs/gpt2

The text is one document a line, `openwebtext/{train,valid}.txt.gz`; any other goes the same way with --task.train.path.
A batch is half a million tokens: with --grad-accum it takes the memory that there is. None of the sizes has been
trained here; their numbers of parameters, which `tests/models/test_decoder.py` counts, are those of the
published models but for the vocabulary.
"""

from jaxlm import (
    AdamW,
    CosineDecay,
    Decoder,
    Experiment,
    LanguageModeling,
    SentencePiece,
    TextFile,
    Windows,
    run_this_experiment,
)

VOCAB, CONTEXT = 50_304, 1024


def small() -> Experiment:
    """GPT-2 small (124M): 12 layers of 12 heads, width 768."""
    return _gpt2(768, 12, 12, peak=6e-4)


def medium() -> Experiment:
    """GPT-2 medium (355M): 24 layers of 16 heads, width 1024."""
    return _gpt2(1024, 16, 24, peak=3e-4)


def large() -> Experiment:
    """GPT-2 large (774M): 36 layers of 20 heads, width 1280."""
    return _gpt2(1280, 20, 36, peak=2.5e-4)


def xl() -> Experiment:
    """GPT-2 XL (1558M): 48 layers of 25 heads, width 1600."""
    return _gpt2(1600, 25, 48, peak=2e-4)


def _gpt2(width: int, heads: int, layers: int, peak: float) -> Experiment:
    train, valid = (TextFile(f"openwebtext/{split}.txt.gz") for split in ("train", "valid"))
    return Experiment(
        task=LanguageModeling(train, valid, valid, windows=Windows(CONTEXT, 16)),
        tokenizer=SentencePiece(VOCAB, model_type="bpe"),
        model=Decoder(
            VOCAB, width, heads, 4 * width, layers, max_length=CONTEXT, dtype="bfloat16", scan=True, remat=True
        ),
        batching=Windows(CONTEXT, 512, carry_state=False),
        optimizer=AdamW(CosineDecay(peak=peak, warmup=2000), b2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0),
        steps=600_000,
        grad_accum=32,
        evaluate_every=1000,
        checkpoint_every=1000,
        best_metric="valid/nll",
    )


if __name__ == "__main__":
    run_this_experiment()
