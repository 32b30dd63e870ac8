"""Page 3: a recurrent network reads any length, but the gradient of what it read long ago vanishes."""

import jax
import numpy as np

from jaxlm import (
    LSTM,
    AdamW,
    Buckets,
    Classification,
    Constant,
    Elman,
    Experiment,
    Recurrent,
    RecurrentClassifier,
    RecurrentLM,
    SequenceClassification,
    Words,
)
from jaxlm.report.run_summary import gradient_flow
from jaxlm.types import Batch

from .corpora import Recall
from .course import INK, Course, Finding, claim, curves

CELLS = {"Elman": Elman(32), "LSTM": LSTM(32, forget_bias=2.0)}
DISTANCE = 40
LENGTHS = (2, 5, 10, 15, 20, 25, 30, 35, 40)


def recall(cell: Elman | LSTM) -> Experiment:
    """Say with which of four letters a line began, after 1 to 40 dots; only the last state has a loss."""
    return Experiment(
        task=Classification(Recall("train", 4000), Recall("valid", 100), Recall("test", 400), labels=Recall.LETTERS),
        tokenizer=Words(10),
        model=RecurrentClassifier(10, num_labels=4, recurrent=Recurrent(cell), word_width=16),
        batching=Buckets(tokens=64 * 42, max_shapes=1),
        optimizer=AdamW(Constant(3e-3, warmup=20), clip=1.0),
        objective=SequenceClassification(),
        steps=400,
        best_metric="valid/accuracy",
    )


def elman() -> Experiment:
    """The simple recurrent network."""
    return recall(CELLS["Elman"])


def lstm() -> Experiment:
    """The long short-term memory, whose forget gate is open at the beginning."""
    return recall(CELLS["LSTM"])


@claim(3, "The gradient of a simple recurrent network vanishes")
def vanishing_gradients(course: Course) -> Finding:
    """The norm of d loss_T / d h_t before any training, by the distance T - t."""
    ids_BT = np.full((4, DISTANCE + 2), 5, np.int32)  # BOS, a letter, dots
    ids_BT[:, 1] = letters_B = np.arange(6, 10)
    label_BT = np.concatenate([ids_BT[:, 1:], letters_B[:, None]], axis=1).astype(np.int32)
    batch = Batch(target_BT=ids_BT, target_valid_BT=np.ones(ids_BT.shape, bool), label_BT=label_BT)
    lines, numbers = {}, {}
    for name, cell in CELLS.items():
        model = RecurrentLM(10, 16, Recurrent(cell))
        params = model.init({"params": jax.random.key(0)}, batch)["params"]
        lines[name] = distance, norm = gradient_flow(model, params, batch)
        numbers[f"{name}: norm at distance {distance[DISTANCE]} / at 0"] = float(norm[DISTANCE] / norm[0])
    figure = curves(lines, "Gradient of the last loss, before training", "distance T − t (tokens)", "‖∂ loss / ∂ h‖")
    figure.axes[0].set_yscale("log")
    simple, long_short = numbers.values()
    checks = {
        "Elman loses a factor of 10,000": simple < 1e-4,
        "LSTM keeps 1,000 times more": long_short > 1000 * simple,
    }
    return Finding(numbers, figure, checks)


@claim(3, "An LSTM learns to recall the first word, a simple network only in part")
def first_word(course: Course) -> Finding:
    """p of the right letter, of four, by the number of dots."""
    lines = {}
    for name, make in {"Elman": elman, "LSTM": lstm}.items():
        run = course.train(make)
        texts = [" ".join([letter, *["."] * length, "?"]) for length in LENGTHS for letter in Recall.LETTERS]
        p_N = [answer.json["probabilities"][text[0]] for answer, text in zip(run.answers(texts), texts, strict=True)]
        lines[name] = LENGTHS, 100 * np.reshape(p_N, (len(LENGTHS), 4)).mean(1)
    figure = curves(lines, "Probability of the letter that the line began with", "dots in between", "p in %")
    figure.axes[0].axhline(25, color=INK, linestyle="--", linewidth=1)
    numbers = {f"{name}, {LENGTHS[i]} dots (%)": float(lines[name][1][i]) for name in lines for i in (0, -1)}
    checks = {
        "LSTM knows the letter after 40 dots": numbers["LSTM, 40 dots (%)"] > 80,
        "Elman knows it 30 points less": numbers["Elman, 40 dots (%)"] < numbers["LSTM, 40 dots (%)"] - 30,
    }
    return Finding(numbers, figure, checks)
