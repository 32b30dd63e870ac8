"""Learn to translate in two minutes on a laptop: the built-in English-Spanish corpus, a small Transformer."""

from jaxlm.data.batching import Packing
from jaxlm.data.minilang import MiniLang
from jaxlm.data.symbols import Words
from jaxlm.decode.options import Beam
from jaxlm.experiment import Experiment
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.optim import AdamW, Linear
from jaxlm.tasks.translate import Search
from jaxlm.tasks.translation import Translation
from jaxlm.train.objective import NextToken

VOCAB = 354


def experiment() -> Experiment:
    """English to Spanish on minilang: 2 + 2 layers, width 128, whole words."""
    return Experiment(
        task=Translation(
            train=MiniLang("train", 40_000),
            valid=MiniLang("valid", 500),
            test=MiniLang("test", 1000),
            search=Search(Beam(size=4), extra=10),
            quick=Search(Beam(size=1), extra=10),
            quick_lines=200,
        ),
        tokenizer=Words(VOCAB),
        model=EncoderDecoder(
            VOCAB, width=128, heads=4, hidden=256, encoder_layers=2, decoder_layers=2, norm="pre", dropout=0.0
        ),
        batching=Packing(length=64, tokens=2048),
        optimizer=AdamW(Linear(peak=3e-3, warmup=100), clip=1.0),
        objective=NextToken(),
        steps=600,
        log_every=20,
        evaluate_every=200,
        checkpoint_every=200,
    )


if __name__ == "__main__":
    from jaxlm.cli.train import run_this_experiment

    run_this_experiment()
