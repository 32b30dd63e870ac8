"""A grid of small language models for scaling laws on two cores, and a ladder of sizes for `jaxlm plan --budget`.

    jaxlm scale grid experiments.scaling:small --workdir runs/scaling --minutes 90
    jaxlm plan experiments.scaling:ladder --budget 1e21 --law law.json --topology v5e:16x16

Bytes of WikiText-2, decoders with rotary positions and RMS norm, 16 windows of 128 bytes a step, and a learning rate
that falls linearly to zero at the end of each run: a run for each size and number of bytes, never a loss from inside a
longer run. N counts the embeddings, which are also the readout; the peak learning rate is proportional to 1 / width.
"""

from jaxlm import (
    AdamW,
    Bytes,
    CosineDecay,
    Decoder,
    Experiment,
    Grid,
    GridRun,
    LanguageModeling,
    LinearDecay,
    SentencePiece,
    TextFile,
    Windows,
    run_this_experiment,
)

SIZES = ((32, 2), (48, 2), (64, 3), (96, 4), (128, 5), (192, 6))
"""(width, layers): 33 thousand to 2.7 million parameters."""
BUDGETS, PREDICT_TO, HELD_OUT = (1e12, 3e12, 1e13, 3e13), 1e13, 1e14
VOCAB, HEAD, LENGTH, ROWS = 260, 32, 128, 16
MIN_STEPS, MAX_BYTES = 60, 43_000_000
"""Shorter runs have barely begun; 43 million bytes are four epochs."""
PEAK_AT_64 = 4e-3
"""The peak learning rate at width 64; at other widths it is proportional to 1 / width."""


def small() -> Grid:
    """Six sizes and four budgets of bytes of WikiText-2, and a held-out run with 1e14 FLOPs."""
    return grid(BUDGETS, PREDICT_TO, HELD_OUT)


def short() -> Grid:
    """The two smallest budgets, and a held-out run with 1e13 FLOPs: a quarter of an hour on two cores."""
    return grid(BUDGETS[:2], 3e12, 1e13, rates=())


def ladder() -> Experiment:
    """A decoder of Llama's proportions, width 64 a layer, on documents: what `jaxlm plan --budget` resizes."""
    train, valid = (TextFile(f"openwebtext/{split}.txt.gz") for split in ("train", "valid"))
    return Experiment(
        task=LanguageModeling(train, valid, valid, windows=Windows(2048, 16)),
        tokenizer=SentencePiece(32_000, model_type="bpe"),
        model=Decoder(
            32_000, 1024, 8, 2816, 16, position="rotary", norm_kind="rms", activation="swiglu", qkv_bias=False,
            out_bias=False, ffn_bias=False, dtype="bfloat16", scan=True, remat=True,
        ),
        batching=Windows(2048, 256, carry_state=False),
        optimizer=AdamW(CosineDecay(peak=3e-4, warmup=2000), b2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0),
        best_metric="valid/nll",
    )  # fmt: skip


def grid(budgets: tuple[float, ...], predict_to: float, held_out: float, rates: tuple[float, ...] = (0.5, 2.0)) -> Grid:
    """All sizes for which a budget has 60 steps or more and at most four epochs; further learning rates and seeds."""
    runs = [run for budget in budgets for size in SIZES if (run := _run(size, budget))]
    extra = [_run((48, 2), budgets[0], seed=seed) for seed in (1, 2)]
    extra += [_run(size, budget, rate=rate) for rate in rates for size, budget in ((SIZES[1], 1e12), (SIZES[-1], 3e12))]
    candidates = [run for size in SIZES if (run := _run(size, held_out, use="held out"))]
    return Grid(sorted(filter(None, [*runs, *extra]), key=lambda run: run.budget), predict_to, candidates)


def _run(size: tuple[int, int], budget: float, rate: float = 1.0, seed: int = 0, use: str = "fit") -> GridRun | None:
    """The run of a size and a budget 6 N D; None if it is too short or has too many epochs."""
    width, layers = size
    params = 12 * layers * width**2 + VOCAB * width + (2 * layers + 1) * width
    steps = round(budget / (6 * params * LENGTH * ROWS))
    if steps < MIN_STEPS or steps * LENGTH * ROWS > MAX_BYTES:
        return None
    use = "rate" if rate != 1 else "seed" if seed else use
    variant = {"rate": f"-rate{rate:g}", "seed": f"-seed{seed}"}.get(use, "")
    name = f"{width}x{layers}-{budget:.0e}{variant}".replace("+", "")
    train, valid, test = (
        TextFile(f"wikitext2/{split}.txt.gz", "whole", *part)
        for split, part in (("train", ()), ("valid", (0.0, 0.25)), ("valid", (0.25, 1.0)))
    )
    experiment = Experiment(
        task=LanguageModeling(train, valid, test, windows=Windows(LENGTH, 64, append_eos=False)),
        tokenizer=Bytes(),
        model=Decoder(
            VOCAB, width, width // HEAD or 1, 4 * width, layers, max_length=LENGTH, position="rotary", norm_kind="rms",
            qkv_bias=False, out_bias=False, ffn_bias=False, init_std=0.5 * width**-0.5,
        ),
        batching=Windows(LENGTH, ROWS, carry_state=False, append_eos=False),
        optimizer=AdamW(
            LinearDecay(peak=rate * PEAK_AT_64 * 64 / width, warmup=min(200, steps // 20)), b2=0.99, eps=1e-8,
            weight_decay=0.1, clip=1.0,
        ),
        steps=steps,
        seed=seed,
        evaluate_every=steps,
        checkpoint_every=min(steps, 2000),
        keep_checkpoints=1,
        best_metric="valid/nll",
    )  # fmt: skip
    return GridRun(name, experiment, budget, use)


if __name__ == "__main__":
    run_this_experiment()
