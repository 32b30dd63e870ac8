"""Page 1: a bag of words loses the order of the words."""

from jaxlm import (
    LSTM,
    AdamW,
    BagOfWords,
    Buckets,
    Classification,
    Experiment,
    LinearDecay,
    MiniLangMinimalPairs,
    Recurrent,
    RecurrentClassifier,
    SequenceClassification,
    Words,
)

from .course import Course, Finding, bars, claim

VOCAB = 197


def twins(model: BagOfWords | RecurrentClassifier, steps: int) -> Experiment:
    """Spanish sentences in pairs of the same words and opposite opinions, which only the place of "no" decides."""
    train, valid, test = (MiniLangMinimalPairs(*split) for split in (("train", 4000), ("valid", 200), ("test", 600)))
    return Experiment(
        task=Classification(train, valid, test, labels=("N", "P")),
        tokenizer=Words(VOCAB),
        model=model,
        batching=Buckets(tokens=1024, max_shapes=1),
        optimizer=AdamW(LinearDecay(peak=5e-3, warmup=20), clip=1.0),
        objective=SequenceClassification(),
        steps=steps,
        best_metric="valid/accuracy",
    )


def bag() -> Experiment:
    """The mean of the word vectors, and a layer on it."""
    return twins(BagOfWords(VOCAB, num_labels=2, width=32, hidden=(32,)), steps=100)


def bigrams() -> Experiment:
    """The same with a vector for each pair of neighbors."""
    return twins(BagOfWords(VOCAB, num_labels=2, width=32, hidden=(32,), bigram_buckets=4096), steps=250)


def lstm() -> Experiment:
    """A recurrent network that reads the words one by one."""
    return twins(RecurrentClassifier(VOCAB, num_labels=2, recurrent=Recurrent(LSTM(48)), word_width=32), steps=400)


@claim(1, "A bag of words cannot tell apart two sentences of the same words")
def word_order(course: Course) -> Finding:
    """Accuracy on held-out pairs: exactly one half without order."""
    names = {"bag of words": bag, "+ bigrams": bigrams, "LSTM": lstm}
    scores = {name: float(course.train(make).evaluate("test")["accuracy"]) for name, make in names.items()}
    checks = {
        "a bag of words has 50 %": abs(scores["bag of words"] - 50) < 1e-9,
        "bigrams have 5 points more": scores["+ bigrams"] > 55,
        "an LSTM has over 85 %": scores["LSTM"] > 85,
    }
    return Finding(scores, bars(scores, "Opinions of sentences of the same words", "accuracy in %", 50), checks)
