"""WMT14 translation with the recipes of "Attention Is All You Need" (Vaswani et al. 2017, sections 5 and 6).

    jaxlm train experiments.wmt14:base_en_de --workdir runs/wmt14

The text comes from tensorflow-datasets (`wmt14_translate/de-en` and `fr-en`, prepared as ArrayRecord; see README,
"WMT14"). The paper reports tokenised, compound-split BLEU on newstest2014: 27.3 (base) and 28.4 (big) for German, 38.1
and 41.8 for French; `evaluate` prints sacreBLEU 13a on raw text, which is about one point lower for German.

What was run: the loader, on a small data set in TFDS's own format; the models, as shapes (`eval_shape`); the same code
path, on Multi30k and minilang. No figure of WMT14 itself was produced here: hardware, hours and score are unmeasured.

| | paper | here |
|---|---|---|
| batch | about 25,000 source and 25,000 target tokens | 25,000 target positions, padding included |
| vocabulary | shared, 37,000 BPE (German), 32,000 word pieces (French) | SentencePiece BPE of that size |
| averaging | last 5 (base) or 20 (big) checkpoints, 10 minutes apart | the same number, 1,500 steps apart |
| search | beam 4, gnmt penalty 0.6, at most source + 50 tokens | the same |
"""

from jaxlm import (
    AdamW,
    Beam,
    Buckets,
    EncoderDecoder,
    Experiment,
    InverseSqrt,
    NextToken,
    Search,
    SentencePiece,
    Tfds,
    Translation,
    run_this_experiment,
)

GERMAN, FRENCH = 37_000, 32_000
WARMUP = 4000


def base_en_de() -> Experiment:
    """WMT14 English to German, Transformer base: 6 + 6 layers, width 512, 100k steps."""
    return _experiment("de", _base(GERMAN), steps=100_000, average=5)


def big_en_de() -> Experiment:
    """WMT14 English to German, Transformer big: width 1024, dropout 0.3, 300k steps."""
    return _experiment("de", _big(GERMAN, dropout=0.3), steps=300_000, average=20)


def base_en_fr() -> Experiment:
    """WMT14 English to French, Transformer base: 6 + 6 layers, width 512, 100k steps."""
    return _experiment("fr", _base(FRENCH), steps=100_000, average=5)


def big_en_fr() -> Experiment:
    """WMT14 English to French, Transformer big: width 1024, dropout 0.1, 300k steps."""
    return _experiment("fr", _big(FRENCH, dropout=0.1), steps=300_000, average=20)


def _base(vocab: int) -> EncoderDecoder:
    return EncoderDecoder(vocab, width=512, heads=8, hidden=2048, dropout=0.1, scan=True)


def _big(vocab: int, dropout: float) -> EncoderDecoder:
    return EncoderDecoder(vocab, width=1024, heads=16, hidden=4096, dropout=dropout, scan=True)


def _experiment(target: str, model: EncoderDecoder, steps: int, average: int) -> Experiment:
    name = f"wmt14_translate/{target}-en"
    return Experiment(
        task=Translation(
            train=Tfds(name, "train", source="en", target=target),
            valid=Tfds(name, "validation", source="en", target=target, keep_blank=True),
            test=Tfds(name, "test", source="en", target=target, keep_blank=True),
            search=Search(Beam(num_beams=4, length_penalty_kind="gnmt", length_penalty=0.6), max_len_extra=50),
            valid_search=Search(Beam(num_beams=1), max_len_extra=50),
        ),
        tokenizer=SentencePiece(model.vocab, model_type="bpe", sample_size=10_000_000),
        model=model,
        batching=Buckets(tokens=25_000, max_shapes=12),
        optimizer=AdamW(InverseSqrt(peak=(model.width * WARMUP) ** -0.5, warmup=WARMUP), b1=0.9, b2=0.98, eps=1e-9),
        objective=NextToken(label_smoothing=0.1),
        steps=steps,
        log_every=100,
        evaluate_every=1500,
        checkpoint_every=1500,
        keep_checkpoints=average,
        average_last=average,
    )


if __name__ == "__main__":
    run_this_experiment()
