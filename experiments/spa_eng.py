"""English to Spanish on the Anki sentence pairs of manythings.org (from Tatoeba, CC BY 2.0 FR).

    jaxlm train experiments.spa_eng --workdir runs/spa_eng

118,964 short pairs, sorted by length, many translations a sentence: the split is by a hash of the English sentence, so
no English sentence of the test set is trained on (2 % valid, 2 % test).
"""

from jaxlm import (
    AdamW,
    Beam,
    Buckets,
    EncoderDecoder,
    Experiment,
    HashSplit,
    InverseSqrt,
    NextToken,
    Search,
    SentencePiece,
    Translation,
    Tsv,
    run_this_experiment,
)

VOCAB = 8000


def experiment() -> Experiment:
    """Anki pairs, English to Spanish: 3 + 3 layers, width 256, pre-norm, joint unigram vocabulary of 8k."""
    return Experiment(
        task=Translation(
            train=_part("train"),
            valid=_part("valid"),
            test=_part("test"),
            search=Search(Beam(num_beams=5)),
            valid_search=Search(Beam(num_beams=1)),
        ),
        tokenizer=SentencePiece(VOCAB, model_type="unigram"),
        model=EncoderDecoder(
            VOCAB, width=256, heads=4, hidden=1024, encoder_layers=3, decoder_layers=3, norm="pre", dropout=0.2
        ),
        batching=Buckets(tokens=4096, max_shapes=8),
        optimizer=AdamW(InverseSqrt(peak=2e-3, warmup=1000), clip=1.0),
        objective=NextToken(label_smoothing=0.1),
        steps=10_000,
        evaluate_every=500,
        checkpoint_every=250,
        keep_checkpoints=5,
        average_last=5,
    )


def _part(part: str) -> HashSplit:
    return HashSplit(Tsv("spa_eng_anki/spa.txt.gz", source=0, target=1), part, valid=0.02, test=0.02)


if __name__ == "__main__":
    run_this_experiment()
