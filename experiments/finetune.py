"""Fine-tuning: a pretrained model with a few new parameters on top, for many tasks (Devlin et al. 2019, section 4).

    jaxlm import-hf models/bert --workdir runs/bert          # or a run of your own, of an encoder or a language model
    jaxlm train experiments.finetune:sick --workdir runs/sick
    jaxlm train experiments.finetune:sick_lora --workdir runs/sick_lora --finetuning.init runs/other

Each task has four variants: all parameters are trained (`sick`); only the head (`sick_frozen`); the head and low-rank
matrices of the queries and values (`sick_lora`, Hu et al. 2022); all parameters, from random ones (`sick_scratch`).
They start from the workdir `runs/bert`, or that of --finetuning.init, and take its model, of any size.

A head on BERT starts from its pooler, if the imported files have one. `jaxlm export-hf runs/sick models/sick` gives a
BertForSequenceClassification or, for tagging, a BertForTokenClassification; low-rank matrices are merged into it.

A TAB separates the sentences of a pair, also in the lines of `predict`.

Measured from all-MiniLM-L6-v2 (22.6 million parameters), ten minutes each on two cores that were busy with other runs:
`sick` 86.0 % after 146 of 450 steps; `sst2` 84.3 % with --steps 120; `wnut17` span F1 45.4 after 101 steps with
--optimizer.schedule.peak 2e-4. From `experiments.bert:mini`, one core: `ewt` 89.8 % with --optimizer.schedule.peak 1e-3
(`ewt_scratch` 82.3), `sick` 64.6 % (`sick_scratch` 61.8). The other variants have been tried for a few steps only.
"""

from dataclasses import replace
from typing import Any

from experiments.tagging import NEAREST, WNUT17
from jaxlm import (
    SENTIMENT_LABELS,
    UPOS_TAGS,
    AdamW,
    Buckets,
    Classification,
    ColumnFile,
    Concat,
    ConllU,
    Encoder,
    Experiment,
    FineTuning,
    LabeledLines,
    LinearDecay,
    LoRA,
    MapLabels,
    PairSource,
    ParallelFiles,
    Regression,
    RelabelTags,
    RteXml,
    SentencePiece,
    SequenceClassification,
    SequenceFormat,
    Tagging,
    TextClassifier,
    TextRegression,
    TokenClassification,
    TokenClassifier,
    Tsv,
    run_this_experiment,
)

INIT = "runs/bert"
VOCAB = 6000
SMALL = Encoder(
    VOCAB, width=128, heads=4, hidden=512, layers=3, max_length=512, dropout=0.2, init_std=0.06, mlm_head=False
)
HEADS = ("(^|/)(head|pooler)/",)
JUDGMENTS = ("NEUTRAL", "ENTAILMENT", "CONTRADICTION")


def sick() -> Experiment:
    """Entailment in SICK (Marelli et al. 2014; 4,500 pairs, trial as test): three classes. Majority: 56.4 %."""
    train, trial = (_sick(split, "entailment_judgment") for split in ("train", "trial"))
    task = Classification(train, trial, trial, sequence_format=SequenceFormat(), labels=JUDGMENTS)
    return _classes(task, tokens=1024, steps=450)


def sick_frozen() -> Experiment:
    """`sick`, training only the head."""
    return _frozen(sick())


def sick_lora() -> Experiment:
    """`sick`, training the head and low-rank matrices."""
    return _lora(sick())


def sick_scratch() -> Experiment:
    """`sick`, from random parameters."""
    return _scratch(sick(), vocab=2000)


def relatedness() -> Experiment:
    """Similarity of two sentences in SICK, from 1 to 5, judged by Pearson's correlation (Marelli et al. 2014)."""
    train, trial = (_sick(split, "relatedness_score") for split in ("train", "trial"))
    task = TextRegression(train, trial, trial, sequence_format=SequenceFormat(), min_value=1.0, max_value=5.0)
    return _experiment(task, TextClassifier(num_labels=1), Regression(), tokens=1024, steps=450, best="valid/pearson")


def relatedness_frozen() -> Experiment:
    """`relatedness`, training only the head."""
    return _frozen(relatedness())


def relatedness_lora() -> Experiment:
    """`relatedness`, training the head and low-rank matrices."""
    return _lora(relatedness())


def relatedness_scratch() -> Experiment:
    """`relatedness`, from random parameters."""
    return _scratch(relatedness(), vocab=2000)


def mrpc() -> Experiment:
    """Paraphrases in MRPC (Dolan and Brockett 2005; 3,576 pairs, 500 to validate, as test): yes or no."""
    train, valid = (
        MapLabels(
            Tsv(f"mrpc/msr-para-{split}.tsv.gz", ("#1 String", "#2 String"), "Quality"), ("0", "1"), ("other", "same")
        )
        for split in ("train", "val")
    )
    task = Classification(train, valid, valid, sequence_format=SequenceFormat(), labels=("other", "same"))
    return _classes(task, tokens=2048, steps=350)


def mrpc_frozen() -> Experiment:
    """`mrpc`, training only the head."""
    return _frozen(mrpc())


def mrpc_lora() -> Experiment:
    """`mrpc`, training the head and low-rank matrices."""
    return _lora(mrpc())


def mrpc_scratch() -> Experiment:
    """`mrpc`, from random parameters."""
    return _scratch(mrpc())


def rte() -> Experiment:
    """Textual entailment, RTE-1 to RTE-3 (Dagan et al. 2006; the first two and 2,567 pairs; RTE-3 dev as test)."""
    files = ("rte1_dev", "rte1_test", "rte2_dev", "rte2_test")
    train, dev = Concat(tuple(map(_rte, files))), _rte("rte3_dev")
    return _classes(
        Classification(train, dev, dev, sequence_format=SequenceFormat(), labels=("no", "yes")), tokens=2048, steps=400
    )


def rte_frozen() -> Experiment:
    """`rte`, training only the head."""
    return _frozen(rte())


def rte_lora() -> Experiment:
    """`rte`, training the head and low-rank matrices."""
    return _lora(rte())


def rte_scratch() -> Experiment:
    """`rte`, from random parameters."""
    return _scratch(rte())


def umsab() -> Experiment:
    """Sentiment of Spanish tweets (UMSAB, Barbieri et al. 2022; 1,839 tweets, val as test): three classes."""
    train, val = (
        MapLabels(
            ParallelFiles(f"umsab_spanish/spanish.{split}_text.txt.gz", f"umsab_spanish/spanish.{split}_labels.txt.gz"),
            old_labels=("0", "1", "2"),
            new_labels=SENTIMENT_LABELS,
        )
        for split in ("train", "val")
    )
    task = Classification(train, val, val, sequence_format=SequenceFormat(), labels=SENTIMENT_LABELS)
    return replace(_classes(task, tokens=1024, steps=400), best_metric="valid/f1")


def umsab_frozen() -> Experiment:
    """`umsab`, training only the head."""
    return _frozen(umsab())


def umsab_lora() -> Experiment:
    """`umsab`, training the head and low-rank matrices."""
    return _lora(umsab())


def umsab_scratch() -> Experiment:
    """`umsab`, from random parameters."""
    return _scratch(umsab(), vocab=5000)


def sst2() -> Experiment:
    """Film reviews, positive or negative (SST-2, Socher et al. 2013; 6,920 sentences, dev as test)."""
    train, dev = (
        MapLabels(LabeledLines(f"sst/stsa.binary.{split}.gz"), ("0", "1"), ("negative", "positive"))
        for split in ("train", "dev")
    )
    task = Classification(train, dev, dev, sequence_format=SequenceFormat(), labels=("negative", "positive"))
    return _classes(task, tokens=1024, steps=600)


def ewt() -> Experiment:
    """Universal parts of speech, UD English EWT (Silveira et al. 2014; 12,544 sentences, dev as test)."""
    dev = ConllU("ud_english_ewt/en_ewt-ud-dev.conllu.gz")
    train = ConllU("ud_english_ewt/en_ewt-ud-train.conllu.gz")
    task = Tagging(train, dev, dev, sequence_format=SequenceFormat(), labels=UPOS_TAGS)
    return _experiment(
        task, TokenClassifier(num_labels=len(UPOS_TAGS)), TokenClassification(), 1024, 500, "valid/accuracy"
    )


def ewt_frozen() -> Experiment:
    """`ewt`, training only the head."""
    return _frozen(ewt())


def ewt_lora() -> Experiment:
    """`ewt`, training the head and low-rank matrices."""
    return _lora(ewt())


def ewt_scratch() -> Experiment:
    """`ewt`, from random parameters."""
    return _scratch(ewt())


def wnut17() -> Experiment:
    """Emerging named entities, WNUT17 (Derczynski et al. 2017; 3,394 tweets, with 10,000 of WikiANN; dev as test)."""
    dev, tweets = (ColumnFile(f"wnut17/{name}.conll.gz") for name in ("emerging.dev", "wnut17train"))
    names = {f"{mark}-{old}": f"{mark}-{new}" for mark in "BI" for old, new in NEAREST.items()}
    pages = RelabelTags(ColumnFile("wikiann_eng/train.conllu.gz", word_column=1), names)
    task = Tagging(
        Concat((tweets, tweets, pages)), dev, dev, sequence_format=SequenceFormat(), labels=WNUT17, iob2_spans=True
    )
    return _experiment(task, TokenClassifier(num_labels=len(WNUT17)), TokenClassification(), 1024, 600, "valid/f1")


def _sick(split: str, column: str) -> Tsv:
    return Tsv(f"sick2014/SICK_{split}.txt.gz", ("sentence_A", "sentence_B"), column)


def _rte(name: str) -> PairSource:
    return MapLabels(RteXml(f"rte123/{name}.xml.gz"), ("FALSE", "NO", "TRUE", "YES"), ("no", "no", "yes", "yes"))


def _classes(task: Classification, tokens: int, steps: int) -> Experiment:
    model = TextClassifier(num_labels=len(task.labels))
    return _experiment(task, model, SequenceClassification(), tokens, steps, "valid/accuracy")


def _experiment(task: Any, model: Any, objective: Any, tokens: int, steps: int, best: str) -> Experiment:
    return Experiment(
        task=task,
        model=model,
        tokenizer=SentencePiece(VOCAB),
        batching=Buckets(tokens=tokens, max_shapes=4, max_length=tokens // 8),
        optimizer=AdamW(LinearDecay(peak=1e-4, warmup=40), b2=0.999, eps=1e-8, weight_decay=0.01, clip=1.0),
        objective=objective,
        finetuning=FineTuning(INIT),
        steps=steps,
        evaluate_every=100,
        checkpoint_every=100,
        best_metric=best,
    )


def _frozen(whole: Experiment) -> Experiment:
    return _with(whole, FineTuning(INIT, HEADS), peak=2e-3)


def _lora(whole: Experiment) -> Experiment:
    return _with(whole, FineTuning(INIT, HEADS, LoRA(dropout=0.05)), peak=1e-3)


def _scratch(whole: Experiment, vocab: int = VOCAB) -> Experiment:
    made = _with(whole, FineTuning(), peak=1e-3)
    model = made.model.clone(model=SMALL.clone(vocab=vocab, parent=None), parent=None)
    return replace(made, model=model, tokenizer=SentencePiece(vocab))


def _with(whole: Experiment, tuning: FineTuning, peak: float) -> Experiment:
    optimizer = replace(whole.optimizer, schedule=LinearDecay(peak=peak, warmup=40))
    return replace(whole, finetuning=tuning, optimizer=optimizer)


if __name__ == "__main__":
    run_this_experiment()
