"""Text to text without pairs (Raffel et al. 2020): spans that were cut out, and texts whose beginning is given.

    jaxlm train experiments.t5:spans --workdir runs/t5
    echo "The game <extra_id_0> in Japan ." | jaxlm predict runs/t5

Both on WikiText-2, at sizes for a laptop; neither has been run to its end. With --task.train and --task.valid on shards
(`jaxlm prepare --user-defined-symbol "<extra_id_0>" ...`) and larger sizes they are the objectives of the paper.
"""

from dataclasses import replace

from jaxlm import (
    T5_SENTINELS,
    AdamW,
    CosineDecay,
    Decoder,
    Denoising,
    Documents,
    EncoderDecoder,
    Experiment,
    PrefixLM,
    PrefixLMWindows,
    SentencePiece,
    SpanCorruption,
    run_this_experiment,
)

VOCAB = 8000


def spans() -> Experiment:
    """Span corruption on WikiText-2: 4 + 4 layers, width 256, 15 % of the tokens in spans of 3."""
    train, valid = (
        Documents((f"wikitext2/{split}.txt.gz",), unit="heading", heading=" = [^=]", line_separator=" ")
        for split in ("train", "valid")
    )
    rows, sentinels = SpanCorruption(length=128, rows=16), T5_SENTINELS[:8]
    return Experiment(
        task=Denoising(train, valid, valid, eval_batching=rows, sentinels=sentinels, valid_batches=20),
        tokenizer=SentencePiece(VOCAB, user_defined_symbols=sentinels),
        model=EncoderDecoder(VOCAB, 256, 4, 1024, 4, 4, norm="pre", position="relative", dropout=0.0),
        batching=rows,
        optimizer=AdamW(CosineDecay(peak=1e-3, warmup=200), clip=1.0),
        steps=2000,
        evaluate_every=250,
        checkpoint_every=250,
        best_metric="valid/nll",
    )


def prefix() -> Experiment:
    """Prefix language modelling on WikiText-2: one decoder of 4 layers, width 256, that reads the prefix both ways."""
    base, rows = spans(), PrefixLMWindows(length=128, rows=16)
    decoder = Decoder(VOCAB, 256, 4, 1024, 4, position="rotary")
    model = PrefixLM(decoder, bidirectional_source=True)
    return replace(base, task=replace(base.task, eval_batching=rows), model=model, batching=rows)


if __name__ == "__main__":
    run_this_experiment()
