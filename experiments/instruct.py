"""Supervised fine-tuning on dialogues: a language model becomes an assistant.

    jaxlm train experiments.instruct:base --workdir runs/commands_base
    jaxlm train experiments.instruct:commands --workdir runs/commands --finetuning.init runs/commands_base
    jaxlm generate runs/commands --chat --prompt "Say its sentiment: the green witch arrived" --temperature 0

    jaxlm train experiments.instruct:text_base --workdir runs/text_base
    jaxlm train experiments.instruct:instructions --workdir runs/instructions --finetuning.init runs/text_base

`commands` answers four commands about sentences of minilang in forms that a program can check; `instructions` learns
from instructions of open license (`alpaca`: from 5,000 others, for research only) on top of a decoder that read
WikiText-2; `lora` adapts a published chat model, with its own chat template. `jaxlm show EXPERIMENT --example` prints
which tokens are trained on.

Measured on one busy core of an AMD EPYC: `commands_base` takes 2 minutes, `commands` 9; of its answers to 400 test
commands all end by themselves, all have one of the forms, and 91 % are right (`jaxlm evaluate runs/commands`).
"""

from dataclasses import replace

from jaxlm import (
    AdamW,
    AlpacaFile,
    Concat,
    CosineDecay,
    Decoder,
    Experiment,
    FineTuning,
    HashSplit,
    InstructionTuning,
    LanguageModeling,
    LoRA,
    MiniLangCommands,
    MiniLangTexts,
    Packing,
    SelfInstructFile,
    SentencePiece,
    SplitName,
    TextFile,
    Windows,
    run_this_experiment,
)

PATTERN = r'positive|negative|neutral|\d+|[\w./ ]+/[A-Z]+|\{"words": \d+, "sentiment": "(positive|negative|neutral)"\}'
"""The forms of the answers to commands."""


def base() -> Experiment:
    """A decoder of 3 layers, width 128, that reads sentences of minilang: it answers nothing."""
    splits = MiniLangTexts("train", 40_000), MiniLangTexts("valid", 500), MiniLangTexts("test", 500)
    return Experiment(
        task=LanguageModeling(*splits, windows=None),
        tokenizer=SentencePiece(600),
        model=Decoder(600, 128, 4, 512, 3, max_length=256, position="rotary"),
        batching=Packing(length=256, tokens=4096),
        optimizer=AdamW(CosineDecay(peak=2e-3, warmup=50), b2=0.99, weight_decay=0.1, clip=1.0),
        steps=400,
        evaluate_every=100,
        checkpoint_every=100,
        best_metric="valid/nll",
    )


def commands() -> Experiment:
    """Commands with answers of a checkable form, from `base`: 20,000 dialogues, test sentences never seen."""
    splits = MiniLangCommands("train", 20_000), MiniLangCommands("valid", 400), MiniLangCommands("test", 400)
    task = InstructionTuning(*splits, answer_pattern=PATTERN, answered=400)
    schedule = CosineDecay(peak=1e-3, warmup=50)
    return replace(base(), task=task, optimizer=replace(base().optimizer, schedule=schedule), steps=1000)


def text_base() -> Experiment:
    """A decoder of 4 layers, width 256, that reads WikiText-2 in 4,000 pieces."""
    train, valid = (TextFile(f"wikitext2/{split}.txt.gz") for split in ("train", "valid"))
    start = base()
    return replace(
        start,
        task=LanguageModeling(train, valid, valid, windows=Windows(length=256, rows=8)),
        tokenizer=SentencePiece(4000),
        model=Decoder(4000, 256, 8, 1024, 4, max_length=512, position="rotary"),
        batching=Windows(length=256, rows=8, carry_state=False),
        optimizer=replace(start.optimizer, schedule=CosineDecay(peak=2e-3, warmup=100)),
        steps=1200,
        evaluate_every=300,
        checkpoint_every=300,
    )


def instructions() -> Experiment:
    """1,174 instructions of open license, from `text_base`; the perplexity of held-out answers, and their ends."""
    files = (
        AlpacaFile("alpaca_en_demo/alpaca_en_demo.json.gz"),
        SelfInstructFile("self_instruct_seeds/seed_tasks.jsonl.gz"),
    )
    return _instructions(Concat(files), steps=200)


def alpaca() -> Experiment:
    """The same with 5,000 instructions of Alpaca (CC BY-NC: for research, nothing made of it may be published)."""
    return _instructions(AlpacaFile("alpaca_5000/alpaca_5000.json.gz"), steps=900)


def lora() -> Experiment:
    """LoRA of rank 8 on a published chat model (--finetuning.init), with the chat template that came with it."""
    experiment = instructions()
    task = replace(experiment.task, chat_template=None, answered=50)
    finetuning = FineTuning(lora=LoRA(rank=8))
    return replace(experiment, task=task, finetuning=finetuning, batching=Packing(256, tokens=2048),
                   steps=150, evaluate_every=50, checkpoint_every=50)  # fmt: skip


def _instructions(dialogues: AlpacaFile | Concat, steps: int) -> Experiment:
    def split(name: SplitName) -> HashSplit:
        return HashSplit(dialogues, name, valid=0.1, test=0.1)

    task = InstructionTuning(split("train"), split("valid"), split("test"), cut_prompts_to=512, answered=100)
    start = text_base()
    return replace(
        start,
        task=task,
        batching=Packing(length=512, tokens=4096, too_long="truncate"),
        optimizer=replace(start.optimizer, schedule=CosineDecay(peak=5e-4, warmup=30)),
        steps=steps,
        evaluate_every=50,
        checkpoint_every=50,
    )


if __name__ == "__main__":
    run_this_experiment()
