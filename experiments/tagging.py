"""Parts of speech and named entities: a bidirectional LSTM over words and their characters (Ma and Hovy 2016).

    jaxlm train experiments.tagging:ewt --workdir runs/ewt
    jaxlm predict runs/ewt < sentences.txt

No word vectors from elsewhere: all that is known was learnt from the training file. Words are folded to lower case,
their characters are not. Published figures on the same splits: English EWT, the most frequent tag of each word 88.3 %
of the dev words; WNUT17, systems with word vectors and gazetteers, span F1 40 to 50.

Measured on two cores: `ewt` 95.27 % on dev after 4 min 40 s; `wikiann_es` span F1 87.4 on val; `wnut17` 26.1 on dev.
"""

from dataclasses import replace

from jaxlm import (
    LSTM,
    UPOS_TAGS,
    AdamW,
    Buckets,
    CharacterCNN,
    ColumnFile,
    Concat,
    ConllU,
    Experiment,
    HashSplit,
    LinearDecay,
    MiniLangTags,
    Recurrent,
    RecurrentTagger,
    RelabelTags,
    SplitName,
    Tagging,
    TokenClassification,
    WordsWithChars,
    iob2_tags,
    run_this_experiment,
)

WIKIANN = iob2_tags("LOC", "ORG", "PER")
NEAREST = {"PER": "person", "LOC": "location", "ORG": "group"}
WNUT17 = iob2_tags("corporation", "creative-work", "group", "location", "person", "product")


def ewt() -> Experiment:
    """Universal parts of speech, UD English EWT (Silveira et al. 2014; 12,544 training sentences, dev as test)."""
    dev = ConllU("ud_english_ewt/en_ewt-ud-dev.conllu.gz")
    task = Tagging(ConllU("ud_english_ewt/en_ewt-ud-train.conllu.gz"), valid=dev, test=dev, labels=UPOS_TAGS)
    return _experiment(task, words=8000, characters=100, steps=2000, tokens=2048, best="valid/accuracy")


def gsd() -> Experiment:
    """Universal parts of speech, Spanish: the dev file of UD GSD (1,400 sentences), a tenth each to choose and test."""
    train, valid, test = (_gsd(part) for part in ("train", "valid", "test"))
    task = Tagging(train, valid, test, labels=UPOS_TAGS)
    return _experiment(task, words=2000, characters=90, steps=600, tokens=1024, best="valid/accuracy")


def wikiann_es() -> Experiment:
    """Named entities, Spanish WikiANN (Pan et al. 2017; 20,000 training sentences, val as test): three classes."""
    val = ColumnFile("wikiann_spa/val.conllu.gz", word_column=1)
    task = Tagging(ColumnFile("wikiann_spa/train.conllu.gz", word_column=1), val, val, labels=WIKIANN, iob2_spans=True)
    return _experiment(task, words=8000, characters=150, steps=1500, tokens=2048, best="valid/f1", crf=True)


def wnut17() -> Experiment:
    """Emerging named entities of WNUT17 (Derczynski et al. 2017; 3,394 training tweets, dev as test): six classes.

    These are few: English WikiANN (10,000 sentences) is added, its tags mapped to the nearest classes.
    """
    dev = ColumnFile("wnut17/emerging.dev.conll.gz")
    tweets = ColumnFile("wnut17/wnut17train.conll.gz")
    names = {f"{mark}-{old}": f"{mark}-{new}" for mark in "BI" for old, new in NEAREST.items()}
    pages = RelabelTags(ColumnFile("wikiann_eng/train.conllu.gz", word_column=1), names)
    task = Tagging(Concat((tweets, tweets, pages)), dev, dev, labels=WNUT17, iob2_spans=True)
    made = _experiment(task, words=8000, characters=150, steps=2000, tokens=1024, best="valid/f1", crf=True)
    # Few entities occur twice: spelling tells more than the word does.
    spelling = CharacterCNN(150, width=32, filters=128, kernel_size=5, dropout=0.2)
    model = made.model.clone(characters=spelling, word_dropout=0.3, parent=None)
    return replace(made, model=model, batching=Buckets(tokens=1024, max_shapes=4, max_length=128))


def minilang() -> Experiment:
    """Universal parts of speech of the built-in Spanish corpus, a minute on a laptop: nothing to download."""
    labels = ("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "NOUN", "NUM", "PRON", "PROPN", "VERB")
    train, valid, test = MiniLangTags("train", 4000), MiniLangTags("valid", 500), MiniLangTags("test", 500)
    task = Tagging(train, valid, test, labels=labels)
    return _experiment(task, words=200, characters=32, steps=200, tokens=1024, best="valid/accuracy")


def _experiment(
    task: Tagging, words: int, characters: int, steps: int, tokens: int, best: str, crf: bool = False
) -> Experiment:
    return Experiment(
        task=task,
        tokenizer=WordsWithChars(words, characters, lowercase=True),
        model=RecurrentTagger(
            words,
            num_labels=len(task.labels),
            recurrent=Recurrent(LSTM(200), bidirectional=True),
            word_width=100,
            characters=CharacterCNN(characters, width=32, filters=128, kernel_size=5),
            dropout=0.5,
            word_dropout=0.15,
            crf=crf,
            tag_names=task.labels if crf else (),
        ),
        batching=Buckets(tokens=tokens, max_length=192),
        optimizer=AdamW(LinearDecay(peak=3e-3, warmup=50), clip=1.0),
        objective=TokenClassification(),
        steps=steps,
        ema_decay=0.99,
        evaluate_every=100,
        checkpoint_every=100,
        best_metric=best,
    )


def _gsd(part: SplitName) -> HashSplit:
    return HashSplit(ConllU("ud_spanish_gsd_dev/es_gsd-ud-dev.conllu.gz"), part, valid=0.1, test=0.1)


if __name__ == "__main__":
    run_this_experiment()
