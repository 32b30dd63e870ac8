"""Multi30k, English to German and French image captions (Elliott et al. 2016): Transformer-Tiny (Wu et al. 2021)."""

from jaxlm.data.batching import Buckets
from jaxlm.data.corpus import ParallelFiles
from jaxlm.data.sentencepiece import SentencePiece
from jaxlm.decode.options import Beam
from jaxlm.experiment import Experiment
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.optim import AdamW, InverseSqrt
from jaxlm.tasks.translate import Search
from jaxlm.tasks.translation import Translation
from jaxlm.train.objective import NextToken

VOCAB = 10_000


def tiny() -> Experiment:
    """English to German: 4 + 4 layers, width 128, one tied embedding of a joint vocabulary of 10k."""
    return Experiment(
        task=Translation(
            train=_files("train", "de"),
            valid=_files("val", "de"),
            test=_files("test_2016_flickr", "de", keep_blank=True),
            more={"test2017": _files("test_2017_flickr", "de", keep_blank=True)},
            search=Search(Beam(size=5, alpha=1.0)),
            quick=Search(Beam(size=1)),
            moses="de",
        ),
        tokenizer=SentencePiece(VOCAB, kind="bpe"),
        model=EncoderDecoder(
            VOCAB, width=128, heads=4, hidden=256, encoder_layers=4, decoder_layers=4, dropout=0.3, max_length=256
        ),
        batching=Buckets(tokens=4096),
        optimizer=AdamW(InverseSqrt(peak=5e-3, warmup=2000)),
        objective=NextToken(smoothing=0.1),
        steps=8000,
        evaluate_every=500,
        checkpoint_every=100,
        keep=10,
        average=10,
    )


def _files(split: str, target: str, keep_blank: bool = False) -> ParallelFiles:
    folder = {"de": "multi30k_eng_deu", "fr": "multi30k_fra"}
    return ParallelFiles(
        f"multi30k_eng_deu/{split}.en.gz", f"{folder[target]}/{split}.{target}.gz", keep_blank=keep_blank
    )
