"""BERT (Devlin et al. 2019): hidden tokens and the next sentence.

    jaxlm train experiments.bert:mini --workdir runs/bert_mini
    echo "The game was [MASK] in Japan ." | jaxlm predict runs/bert_mini --jsonl

`mini` is BERT mini (Turc et al. 2019: 4 layers, width 256) on the articles of WikiText-2, in rows of 128; it has twice
as many positions, so that longer sentences do not stop what is fine-tuned from it. After its 2,000 steps (20 minutes of
one busy CPU core) it guesses 45.9 % of the hidden pieces of the valid split, 3.557 nats a piece; from the paper's
deviation of 0.02, too little for 256 features, 34.3 % and 4.464. The next sentence it does not tell yet (52 %).

A published BERT is trained further on the same text, with its own tokenizer and sizes (`jaxlm export-hf` writes it
back; a RoBERTa: --task.mask "<mask>" --task.rows.no-pairs --batching.no-pairs):

    jaxlm import-hf models/bert --workdir runs/bert
    jaxlm train experiments.bert:mini --workdir runs/more --tuning.init runs/bert --optimizer.schedule.peak 5e-5

`base` reads shards: documents that `jaxlm prepare` made into ids once. It has the sizes, the optimizer and the
1,000,000 steps of 256 rows of the paper, with 512 positions from the first step on (the paper: 128 for nine tenths of
them). It has not been trained here; its parameters are those published, 110 million.

    jaxlm prepare wiki/*.txt.gz --unit block --out bert/train --size 30522 --symbol "[MASK]"
    jaxlm prepare wiki/valid.txt.gz --unit block --out bert/valid --tokenizer bert/train
    jaxlm train experiments.bert:base --workdir runs/bert_base --accumulate 32
"""

from dataclasses import replace

from jaxlm.data.documents import Documents
from jaxlm.data.masked_rows import MaskedRows
from jaxlm.data.sentencepiece import SentencePiece
from jaxlm.data.shards import Shards
from jaxlm.data.tokenizer import Stored
from jaxlm.experiment import Experiment
from jaxlm.models.encoder import Encoder
from jaxlm.optim import AdamW, Linear
from jaxlm.tasks.masked import MaskedLanguageModelling
from jaxlm.train.masked import MaskedTokens

MASK = "[MASK]"


def mini() -> Experiment:
    """BERT mini (4 layers of 4 heads, width 256) on WikiText-2: hidden tokens and the next sentence."""
    train, valid = (
        Documents((f"wikitext2/{split}.txt.gz",), unit="heading", heading=" = [^=]", between=" ")
        for split in ("train", "valid")
    )
    rows = MaskedRows(length=128, rows=16, pairs=True)
    model = Encoder(
        8000, 256, 4, 1024, 4, max_length=256, pairs=True, norm="pre", dropout=0.0, attention_dropout=0.0,
        deviation=0.05,
    )  # fmt: skip
    return Experiment(
        task=MaskedLanguageModelling(train, valid, valid, rows=rows, mask=MASK, quick=20),
        tokenizer=SentencePiece(8000, symbols=(MASK,)),
        model=model,
        batching=rows,
        optimizer=AdamW(Linear(peak=1e-3, warmup=200), b2=0.98, eps=1e-6, weight_decay=0.01, clip=1.0),
        objective=MaskedTokens(),
        steps=2000,
        evaluate_every=250,
        checkpoint_every=250,
        best="valid/nll",
    )


def base() -> Experiment:
    """BERT base (110M): 12 layers of 12 heads, width 768, 512 positions, on shards."""
    rows = MaskedRows(length=512, rows=256, pairs=True)
    train, valid = (Shards(f"bert/{split}") for split in ("train", "valid"))
    return Experiment(
        task=MaskedLanguageModelling(train, valid, valid, rows=replace(rows, rows=32), mask=MASK, quick=40),
        tokenizer=Stored("bert/train", size=30_522),
        model=Encoder(30_522, pairs=True, dtype="bfloat16", scan=True, remat=True),
        batching=rows,
        optimizer=AdamW(Linear(peak=1e-4, warmup=10_000), b2=0.999, eps=1e-6, weight_decay=0.01, clip=1.0),
        objective=MaskedTokens(),
        steps=1_000_000,
        evaluate_every=10_000,
        checkpoint_every=10_000,
        best="valid/nll",
    )


if __name__ == "__main__":
    from jaxlm.cli.train import run_this_experiment

    run_this_experiment()
