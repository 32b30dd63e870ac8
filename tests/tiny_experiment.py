"""An experiment of seconds for the tests of the command line: a slice of minilang, a model of one layer a side."""

from jaxlm.data.batching import Buckets
from jaxlm.data.corpus import ParallelFiles
from jaxlm.data.minilang import MiniLang
from jaxlm.data.symbols import Bytes
from jaxlm.decode.options import Beam
from jaxlm.experiment import Experiment
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.optim import AdamW, Constant
from jaxlm.tasks.translate import Search
from jaxlm.tasks.translation import Translation


def tiny() -> Experiment:
    """A slice of minilang, letter by letter."""
    return _experiment(MiniLang("train", 200), MiniLang("valid", 4), MiniLang("test", 6))


def missing() -> Experiment:
    """Its test files do not exist."""
    return _experiment(MiniLang("train", 200), MiniLang("valid", 4), ParallelFiles("nowhere.en", "nowhere.es"))


def _experiment(train, valid, test) -> Experiment:
    search = Search(Beam(2), ratio=0.2, extra=4, tokens=192, max_source=24)
    return Experiment(
        task=Translation(train, valid, test, more={"again": MiniLang("test", 3)}, search=search, quick_lines=2),
        tokenizer=Bytes(),
        model=EncoderDecoder(260, width=16, heads=2, hidden=16, encoder_layers=1, decoder_layers=1, dropout=0.1),
        batching=Buckets(tokens=1024, shapes=1, max_length=128),
        optimizer=AdamW(Constant(1e-2)),
        steps=4,
        log_every=2,
        evaluate_every=4,
        checkpoint_every=2,
        average=2,
    )
