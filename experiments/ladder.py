"""The ladder of translation models, compared after the same minutes on the same machine.

    python -m benchmarks.ladder                      every rung on Multi30k, five minutes each, and the table
    jaxlm train experiments.ladder:general --workdir runs/general --max-minutes 5

From a context that is looked at once, over a context at every step, to attention by each score, one network for both
languages, convolutions, and the Transformer. All rungs share data, vocabulary (4,000 pieces), batches and optimizer,
and are about of one size (1.5 to 2.9 million parameters). The rungs that begin with `minilang_` translate the
built-in corpus.

Measured on two shared cores, five minutes each, test2016 BLEU: first 8.0, every 17.9, dot 29.5, general 29.7, additive
24.9, one_network 3.9 (a busy five minutes), transformer 32.1.
"""

import dataclasses
from typing import Any

import flax.linen as nn

from jaxlm import (
    LSTM,
    AdamW,
    Beam,
    Buckets,
    ConvSeq2Seq,
    EncoderDecoder,
    Experiment,
    InverseSqrt,
    MiniLang,
    NextToken,
    ParallelFiles,
    PrefixLM,
    Recurrent,
    RecurrentLM,
    Search,
    SentencePiece,
    Seq2Seq,
    Translation,
    Words,
    run_this_experiment,
)

VOCAB, MINILANG_VOCAB = 4000, 354
WIDTH = 256


def first() -> Experiment:
    """Multi30k en-de: the source's last state starts the decoder (Sutskever et al. 2014)."""
    return _multi30k(_seq2seq(context="first"))


def every() -> Experiment:
    """Multi30k en-de: the source's last state is read at every step (Cho et al. 2014)."""
    return _multi30k(_seq2seq(context="every"))


def dot() -> Experiment:
    """Multi30k en-de: attention by the dot product (Luong et al. 2015)."""
    return _multi30k(_seq2seq(score="dot"))


def general() -> Experiment:
    """Multi30k en-de: attention by a bilinear form (Luong et al. 2015)."""
    return _multi30k(_seq2seq(score="general"))


def additive() -> Experiment:
    """Multi30k en-de: attention by a small network, before the cell (Bahdanau et al. 2015)."""
    return _multi30k(_seq2seq(score="additive", attention_order="before"))


def one_network() -> Experiment:
    """Multi30k en-de: one LSTM reads the source and a separator, and continues with the target."""
    return _multi30k(_one_network(VOCAB))


def convolutional() -> Experiment:
    """Multi30k en-de: gated convolutions, attention in each layer of the decoder (Gehring et al. 2017)."""
    return _multi30k(_convolutional(VOCAB))


def transformer() -> Experiment:
    """Multi30k en-de: a Transformer of 3 + 3 layers (Vaswani et al. 2017)."""
    return _multi30k(_transformer(VOCAB))


def minilang_first() -> Experiment:
    """The built-in corpus: the source's last state starts the decoder."""
    return _minilang(_seq2seq(context="first"))


def minilang_every() -> Experiment:
    """The built-in corpus: the source's last state is read at every step."""
    return _minilang(_seq2seq(context="every"))


def minilang_dot() -> Experiment:
    """The built-in corpus: attention by the dot product."""
    return _minilang(_seq2seq(score="dot"))


def minilang_general() -> Experiment:
    """The built-in corpus: attention by a bilinear form."""
    return _minilang(_seq2seq(score="general"))


def minilang_additive() -> Experiment:
    """The built-in corpus: attention by a small network, before the cell."""
    return _minilang(_seq2seq(score="additive", attention_order="before"))


def minilang_one_network() -> Experiment:
    """The built-in corpus: one LSTM for both languages."""
    return _minilang(_one_network(MINILANG_VOCAB))


def minilang_convolutional() -> Experiment:
    """The built-in corpus: gated convolutions, attention in each layer of the decoder."""
    return _minilang(_convolutional(MINILANG_VOCAB))


def minilang_transformer() -> Experiment:
    """The built-in corpus: a Transformer of 3 + 3 layers."""
    return _minilang(_transformer(MINILANG_VOCAB))


def _seq2seq(**options: Any) -> Seq2Seq:
    """A two-way LSTM reads, another one of its width writes."""
    encoder, decoder = Recurrent(LSTM(WIDTH // 2), bidirectional=True), Recurrent(LSTM(WIDTH))
    return Seq2Seq(VOCAB, WIDTH, encoder, decoder, dropout=0.2, **options)


def _one_network(vocab: int) -> PrefixLM:
    return PrefixLM(RecurrentLM(vocab, WIDTH, Recurrent(LSTM(WIDTH), layers=2, dropout=0.2), dropout=0.2))


def _transformer(vocab: int) -> EncoderDecoder:
    return EncoderDecoder(
        vocab, width=WIDTH // 2, heads=4, hidden=WIDTH, encoder_layers=3, decoder_layers=3, norm="pre", dropout=0.1
    )


def _convolutional(vocab: int) -> ConvSeq2Seq:
    layers = ((WIDTH // 2, 3),) * 4
    return ConvSeq2Seq(vocab, WIDTH // 2, layers, layers[:3], dropout=0.1, tie_embeddings="target")


def _multi30k(model: nn.Module) -> Experiment:
    task = Translation(
        train=_files("train"),
        valid=_files("val"),
        test=_files("test_2016_flickr", keep_blank=True),
        search=Search(Beam(num_beams=5, length_penalty=1.0)),
        valid_search=Search(Beam(num_beams=1)),
        valid_examples=200,
    )
    return _experiment(task, model, SentencePiece(VOCAB, model_type="bpe"), smoothing=0.1)


def _minilang(model: Any) -> Experiment:
    task = Translation(
        train=MiniLang("train", 40_000),
        valid=MiniLang("valid", 500),
        test=MiniLang("test", 1000),
        search=Search(Beam(num_beams=4), max_len_extra=10),
        valid_search=Search(Beam(num_beams=1), max_len_extra=10),
        valid_examples=200,
    )
    if isinstance(model, Seq2Seq):
        model = dataclasses.replace(model, vocab=MINILANG_VOCAB)
    return _experiment(task, model, Words(MINILANG_VOCAB), smoothing=0.0)


def _experiment(task: Translation, model: nn.Module, tokenizer: Any, smoothing: float) -> Experiment:
    return Experiment(
        task=task,
        model=model,
        tokenizer=tokenizer,
        batching=Buckets(tokens=2048, max_shapes=4),
        optimizer=AdamW(InverseSqrt(peak=3e-3, warmup=300), clip=1.0),
        objective=NextToken(label_smoothing=smoothing),
        steps=20_000,
        log_every=50,
        evaluate_every=20_000,
        checkpoint_every=20_000,
        best_metric="valid/bleu",
    )


def _files(split: str, keep_blank: bool = False) -> ParallelFiles:
    return ParallelFiles(f"multi30k_eng_deu/{split}.en.gz", f"multi30k_eng_deu/{split}.de.gz", keep_blank=keep_blank)


if __name__ == "__main__":
    run_this_experiment()
