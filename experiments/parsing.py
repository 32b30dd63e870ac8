"""Constituency parsing: a Transformer that writes brackets (Vinyals et al. 2015; Vaswani et al. 2017), and a tagger.

    jaxlm train experiments.parsing:gum --workdir runs/gum
    echo "It was too tired ." | jaxlm predict runs/gum
    jaxlm evaluate runs/gum --split dev

`gum` and `craft` are the Transformer with an aligned decoder; `gum_labels` and `craft_labels` predict one label a word
with a bidirectional LSTM (Gómez-Rodríguez and Vilares 2018). The trees of GUM (Zeldes 2017) are a parser's over gold
tags, which is easier than gold trees; those of CRAFT (Verspoor et al. 2012) are gold. Both are read by `Trees`, any
treebank in Penn brackets is. Figures: docs/parsing.md.
"""

from functools import lru_cache

from jaxlm import (
    LSTM,
    AdamW,
    Beam,
    Buckets,
    CharacterCNN,
    EncoderDecoder,
    Experiment,
    InverseSqrt,
    LinearDecay,
    MiniLangTrees,
    NextToken,
    Parsing,
    Recurrent,
    RecurrentTagger,
    Search,
    SentencePiece,
    TokenClassification,
    Trees,
    TreeTagging,
    TreeTokens,
    WordsWithChars,
    level_labels,
    run_this_experiment,
)

WORDS = 4000
FIRST_LEAF = 4


def gum() -> Experiment:
    """GUM, 10,224 trees: 3 + 2 layers, width 192, aligned decoder; 16 epochs."""
    return _brackets(_task("gum_const/gum", {"dev": "dev"}, test="test"), symbols=55, steps=6500)


def craft() -> Experiment:
    """CRAFT, 18,951 trees of biomedical articles: 3 + 2 layers, width 192, aligned decoder; not run yet."""
    return _brackets(_task("craft_const/craft", {"dev": "dev"}, test="dev"), symbols=59, steps=10_000)


def gum_labels() -> Experiment:
    """GUM, a label for each word: a bidirectional LSTM of 2 x 200 units over words and characters."""
    return _labels("gum_const/gum", test="test", steps=3500)


def craft_labels() -> Experiment:
    """CRAFT, a label for each word: a bidirectional LSTM of 2 x 200 units over words and characters."""
    return _labels("craft_const/craft", test="dev", steps=5000)


def minilang() -> Experiment:
    """The trees of the built-in corpus, two minutes on a laptop: a smoke test that must come near 100 F1."""
    train, valid, test = MiniLangTrees("train", 8000), MiniLangTrees("valid", 200), MiniLangTrees("test", 500)
    model = _model(symbols=15, width=64, hidden=128, encoder_layers=2, words=500, dropout=0.0)
    return Experiment(
        task=Parsing(train, valid, test, valid_examples=100),
        tokenizer=TreeTokens(model.vocab, SentencePiece(500, "bpe")),
        model=model,
        batching=Buckets(tokens=1024, max_shapes=4, max_length=128),
        optimizer=AdamW(LinearDecay(peak=4e-3, warmup=50), clip=1.0),
        objective=NextToken(),
        steps=400,
        evaluate_every=200,
        checkpoint_every=200,
        best_metric="valid/f1",
    )


def wsj() -> Experiment:
    """Wall Street Journal, sections 02-21, 22, 23: section 6.3 of Vaswani et al. 2017 (F1 91.3), not run here."""
    train, valid, test = (Trees(f"wsj/wsj.{sections}.mrg") for sections in ("02-21", "22", "23"))
    beam = Beam(num_beams=21, length_penalty_kind="gnmt", length_penalty=0.3)
    model = EncoderDecoder(
        57, width=1024, heads=8, hidden=2048, encoder_layers=4, decoder_layers=4, dropout=0.2, attention_dropout=0.2,
        tie_embeddings="none", source_vocab=16_000,
    )  # fmt: skip
    return Experiment(
        task=Parsing(train, valid, test, search=Search(beam, max_len_ratio=4.0, max_len_extra=24)),
        tokenizer=TreeTokens(57, SentencePiece(16_000, "bpe"), mark_words=False),
        model=model,
        batching=Buckets(tokens=4096, max_length=512),
        optimizer=AdamW(InverseSqrt(peak=(1024 * 16_000) ** -0.5, warmup=16_000), b1=0.9, b2=0.98, eps=1e-9),
        objective=NextToken(label_smoothing=0.1),
        steps=100_000,
        evaluate_every=2000,
        checkpoint_every=2000,
        keep_checkpoints=5,
        average_last=5,
        best_metric="valid/f1",
    )


def _task(path: str, more: dict[str, str], test: str) -> Parsing:
    splits = {name: Trees(f"{path}.{split}.ptb.gz") for name, split in {"train": "train", **more}.items()}
    extra = {name: splits[name] for name in more}
    search = Search(Beam(num_beams=5), max_len_ratio=4.0, max_len_extra=24)
    return Parsing(splits["train"], splits["dev"], Trees(f"{path}.{test}.ptb.gz"), extra, search=search)


def _model(
    symbols: int, width: int, hidden: int, encoder_layers: int, words: int = WORDS, dropout: float = 0.2
) -> EncoderDecoder:
    return EncoderDecoder(
        FIRST_LEAF + symbols, width, heads=4, hidden=hidden, encoder_layers=encoder_layers, decoder_layers=2,
        norm="pre", dropout=dropout, attention_dropout=dropout / 2, tie_embeddings="none", source_vocab=words,
        aligned=(FIRST_LEAF, FIRST_LEAF + 1),
    )  # fmt: skip


def _brackets(task: Parsing, symbols: int, steps: int) -> Experiment:
    model = _model(symbols, width=192, hidden=576, encoder_layers=3, dropout=0.1).clone(position="relative")
    return Experiment(
        task=task,
        tokenizer=TreeTokens(model.vocab, SentencePiece(WORDS, "bpe")),
        model=model,
        batching=Buckets(tokens=2048, max_shapes=6, max_length=200),
        optimizer=AdamW(LinearDecay(peak=3e-3, warmup=200), clip=1.0),
        objective=NextToken(label_smoothing=0.05),
        steps=steps,
        evaluate_every=1000,
        checkpoint_every=100,
        keep_checkpoints=5,
        average_last=5,
        best_metric="valid/f1",
    )


def _labels(path: str, test: str, steps: int) -> Experiment:
    train, dev, final = (Trees(f"{path}.{split}.ptb.gz") for split in ("train", "dev", test))
    task = TreeTagging(train, dev, final, {"dev": dev}, labels=_known_labels(train))
    words, characters = 8000, 100
    return Experiment(
        task=task,
        tokenizer=WordsWithChars(words, characters, lowercase=True),
        model=RecurrentTagger(
            words,
            num_labels=len(task.labels),
            recurrent=Recurrent(LSTM(200), layers=2, bidirectional=True),
            word_width=100,
            characters=CharacterCNN(characters, width=32, filters=128, kernel_size=5),
            dropout=0.5,
            word_dropout=0.15,
        ),
        batching=Buckets(tokens=2048, max_length=192),
        optimizer=AdamW(LinearDecay(peak=3e-3, warmup=50), clip=1.0),
        objective=TokenClassification(),
        steps=steps,
        ema_decay=0.99,
        evaluate_every=500,
        checkpoint_every=500,
        best_metric="valid/f1",
    )


@lru_cache
def _known_labels(train: Trees) -> tuple[str, ...]:
    return level_labels(train)


if __name__ == "__main__":
    run_this_experiment()
