"""n-gram language models, counted in seconds: the floor that every other language model has to beat.

    jaxlm train experiments.ngram --workdir runs/ngram

Characters of tiny shakespeare (Karpathy 2015; train on the first nine tenths) and words of WikiText-2 (Merity et al.
2016). The published floor of the character 5-gram is 1.669 nats a character on the last tenth (Witten-Bell).

Measured on two cores: `shakespeare` 1.6688 nats a character, `shakespeare_kn` 1.5612 (fitted in 1.1 s), `wikitext2`
valid perplexity 234.9 (fitted in 6.5 s).
"""

from jaxlm import (
    Buckets,
    Characters,
    Experiment,
    KneserNey,
    LanguageModeling,
    NGram,
    TextFile,
    Windows,
    WittenBell,
    Words,
    run_this_experiment,
)

CHARACTERS, WORDS = 69, 33_280
SHAKESPEARE, WIKITEXT = "tinyshakespeare/input.txt.gz", "wikitext2"


def shakespeare() -> Experiment:
    """Tiny shakespeare, character 5-gram, Witten-Bell."""
    return _shakespeare(WittenBell())


def shakespeare_kn() -> Experiment:
    """Tiny shakespeare, character 5-gram, modified Kneser-Ney."""
    return _shakespeare(KneserNey())


def wikitext2() -> Experiment:
    """WikiText-2, word 5-gram, modified Kneser-Ney; a line is a sentence, as KenLM has it."""
    train, valid = (TextFile(f"{WIKITEXT}/{split}.txt.gz") for split in ("train", "valid"))
    return Experiment(
        task=LanguageModeling(train, valid, valid, windows=None, sample_tokens=40),
        tokenizer=Words(WORDS),
        model=NGram(WORDS, order=5, smoothing=KneserNey()),
        batching=Buckets(too_long="truncate", max_length=2048),
        steps=1,
        best_metric="valid/perplexity",
    )


def _shakespeare(smoothing: KneserNey | WittenBell) -> Experiment:
    parts = [TextFile(SHAKESPEARE, "whole", *part) for part in ((0.0, 0.9), (0.9, 1.0))]
    windows = Windows(length=4096, rows=1, append_eos=False)
    return Experiment(
        task=LanguageModeling(parts[0], parts[1], parts[1], windows=windows, sample_tokens=200),
        tokenizer=Characters(CHARACTERS),
        model=NGram(CHARACTERS, order=5, smoothing=smoothing, continuous_text=True, append_eos=False),
        batching=windows,
        steps=1,
        best_metric="valid/nll",
    )


if __name__ == "__main__":
    run_this_experiment()
