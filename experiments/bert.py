"""BERT (Devlin et al. 2019): hidden tokens and the next sentence.

    jaxlm train experiments.bert:mini --workdir runs/bert_mini
    echo "The game was [MASK] in Japan ." | jaxlm predict runs/bert_mini --jsonl

`mini` is BERT mini (Turc et al. 2019: 4 layers, width 256) on the articles of WikiText-2, in rows of 128; it has twice
as many positions, so that longer sentences do not stop what is fine-tuned from it. After its 2,000 steps (20 minutes of
one busy CPU core) it guesses 45.9 % of the hidden pieces of the valid split, 3.557 nats a piece; from the paper's
deviation of 0.02, too little for 256 features, 34.3 % and 4.464. The next sentence it does not tell yet (52 %).

A published BERT is trained further on the same text, with its own tokenizer and sizes (`jaxlm export-hf` writes it
back; a RoBERTa: --task.mask-token "<mask>" --task.eval-batching.no-next-sentence --batching.no-next-sentence):

    jaxlm import-hf models/bert --workdir runs/bert
    jaxlm train experiments.bert:mini --workdir runs/more --finetuning.init runs/bert --optimizer.schedule.peak 5e-5

`base` reads shards: documents that `jaxlm prepare` made into ids once. It has the sizes, the optimizer and the
1,000,000 steps of 256 rows of the paper, with 512 positions from the first step on (the paper: 128 for nine tenths of
them). It has not been trained here; its parameters are those published, 110 million.

    jaxlm prepare wiki/*.txt.gz --unit block --out bert/train --vocab-size 30522 --user-defined-symbol "[MASK]"
    jaxlm prepare wiki/valid.txt.gz --unit block --out bert/valid --tokenizer bert/train
    jaxlm train experiments.bert:base --workdir runs/bert_base --grad-accum 32
"""

from dataclasses import replace

from jaxlm import (
    AdamW,
    Documents,
    Encoder,
    Experiment,
    LinearDecay,
    MaskedLanguageModeling,
    MaskedLM,
    MaskedLMRows,
    SavedTokenizer,
    SentencePiece,
    Shards,
    run_this_experiment,
)

MASK = "[MASK]"


def mini() -> Experiment:
    """BERT mini (4 layers of 4 heads, width 256) on WikiText-2: hidden tokens and the next sentence."""
    train, valid = (
        Documents((f"wikitext2/{split}.txt.gz",), unit="heading", heading=" = [^=]", line_separator=" ")
        for split in ("train", "valid")
    )
    rows = MaskedLMRows(length=128, rows=16, next_sentence=True)
    model = Encoder(
        8000, 256, 4, 1024, 4, max_length=256, nsp_head=True, norm="pre", dropout=0.0, attention_dropout=0.0,
        init_std=0.05,
    )  # fmt: skip
    return Experiment(
        task=MaskedLanguageModeling(train, valid, valid, eval_batching=rows, mask_token=MASK, valid_batches=20),
        tokenizer=SentencePiece(8000, user_defined_symbols=(MASK,)),
        model=model,
        batching=rows,
        optimizer=AdamW(LinearDecay(peak=1e-3, warmup=200), b2=0.98, eps=1e-6, weight_decay=0.01, clip=1.0),
        objective=MaskedLM(),
        steps=2000,
        evaluate_every=250,
        checkpoint_every=250,
        best_metric="valid/nll",
    )


def base() -> Experiment:
    """BERT base (110M): 12 layers of 12 heads, width 768, 512 positions, on shards."""
    rows = MaskedLMRows(length=512, rows=256, next_sentence=True)
    train, valid = (Shards(f"bert/{split}") for split in ("train", "valid"))
    return Experiment(
        task=MaskedLanguageModeling(
            train, valid, valid, eval_batching=replace(rows, rows=32), mask_token=MASK, valid_batches=40
        ),
        tokenizer=SavedTokenizer("bert/train", vocab_size=30_522),
        model=Encoder(30_522, nsp_head=True, dtype="bfloat16", scan=True, remat=True),
        batching=rows,
        optimizer=AdamW(LinearDecay(peak=1e-4, warmup=10_000), b2=0.999, eps=1e-6, weight_decay=0.01, clip=1.0),
        objective=MaskedLM(),
        steps=1_000_000,
        evaluate_every=10_000,
        checkpoint_every=10_000,
        best_metric="valid/nll",
    )


if __name__ == "__main__":
    run_this_experiment()
