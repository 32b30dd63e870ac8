"""Learn to translate in two minutes on a laptop: the built-in English-Spanish corpus, a small Transformer."""

from jaxlm import (
    AdamW,
    Beam,
    EncoderDecoder,
    Experiment,
    LinearDecay,
    MiniLang,
    NextToken,
    Packing,
    Search,
    Translation,
    Words,
    run_this_experiment,
)

VOCAB = 354


def experiment() -> Experiment:
    """English to Spanish on minilang: 2 + 2 layers, width 128, whole words."""
    return Experiment(
        task=Translation(
            train=MiniLang("train", 40_000),
            valid=MiniLang("valid", 500),
            test=MiniLang("test", 1000),
            search=Search(Beam(num_beams=4), max_len_extra=10),
            valid_search=Search(Beam(num_beams=1), max_len_extra=10),
            valid_examples=200,
        ),
        tokenizer=Words(VOCAB),
        model=EncoderDecoder(
            VOCAB, width=128, heads=4, hidden=256, encoder_layers=2, decoder_layers=2, norm="pre", dropout=0.0
        ),
        batching=Packing(length=64, tokens=2048),
        optimizer=AdamW(LinearDecay(peak=3e-3, warmup=100), clip=1.0),
        objective=NextToken(),
        steps=600,
        log_every=20,
        evaluate_every=200,
        checkpoint_every=200,
    )


if __name__ == "__main__":
    run_this_experiment()
