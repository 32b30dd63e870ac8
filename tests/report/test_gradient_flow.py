"""Gradient flow: a product of Jacobians where it can be written down, and the short cut that attention makes."""

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from fixtures.zoo import SEQ2SEQ, TRANSFORMER, VOCAB, Example, batch_of, examples, params_of
from references.recurrent_oracle import Oracle, named_float64

from jaxlm.errors import UserError
from jaxlm.models.feedforward_lm import FeedForwardLM
from jaxlm.models.prefix_lm import PrefixLM
from jaxlm.models.rnn_lm import RecurrentLM
from jaxlm.nn.rnn.cells import Elman
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.report.figures import gradient_flow_figure
from jaxlm.report.run_summary import gradient_flow

ELMAN = RecurrentLM(VOCAB, 6, Recurrent(Elman(5), layers=2), tie_embeddings=False)
ROWS = examples(5, low=4, high=12)


def small_weights(params, size: float = 0.4):
    """The same parameters, but the recurrent matrix of the top layer has `size` as its largest singular value."""
    top = params["recurrent"]["layer_1"]
    matrix = top["recurrent"] * (size / np.linalg.norm(top["recurrent"], 2))
    return params | {"recurrent": params["recurrent"] | {"layer_1": top | {"recurrent": matrix}}}


def by_hand(params, row: Example) -> np.ndarray:
    """|d loss_T / d h_t| for T - t = 0, 1, ..: V^T (p - y), then once more diag(1 - h_{t+1}^2) U^T a step back."""
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x_TD = w["embedding"][row.target]
    for layer in ("layer_0", "layer_1"):
        cell, hidden_D, out = w["recurrent"][layer], np.zeros(5), []
        for x_D in x_TD:
            hidden_D = np.tanh(x_D @ cell["input"] + hidden_D @ cell["recurrent"] + cell["bias"])
            out.append(hidden_D)
        x_TD = np.array(out)
    exp_V = np.exp(w["output"] @ x_TD[-1] + w["output_bias"])
    grad_D = w["output"].T @ (exp_V / exp_V.sum() - np.eye(VOCAB)[row.label[-1]])
    norms = [np.linalg.norm(grad_D)]
    for hidden_D in x_TD[:0:-1]:
        grad_D = cell["recurrent"] @ ((1 - hidden_D**2) * grad_D)
        norms.append(np.linalg.norm(grad_D))
    return np.array(norms)


@pytest.mark.parametrize("layout", ["right", "holes"])
def test_an_elman_net_is_a_product_of_jacobians(layout):
    """The mean over the rows that are long enough, wherever padding lies; it falls at least as fast as |U|^(T - t)."""
    params = small_weights(params_of(ELMAN))
    batch = batch_of(ROWS, 12, 14, target_layout=layout)
    distance, norm = gradient_flow(ELMAN, params, batch)
    hands = [by_hand(params, row) for row in ROWS]
    np.testing.assert_array_equal(distance, np.arange(12))
    expected = [np.mean([hand[d] for hand in hands if len(hand) > d]) for d in distance]
    np.testing.assert_allclose(norm, expected, rtol=1e-5)
    one, longest = gradient_flow(ELMAN, params, batch_of(ROWS[:1], 12, 12))[1], hands[0]
    np.testing.assert_allclose(one, longest, rtol=1e-5)
    assert (one[1:] <= 0.4 * one[:-1] * (1 + 1e-5)).all() and one[-1] < 1e-5


@pytest.mark.parametrize("layout", ["right", "holes"])
def test_joined_flows_through_source_and_target(layout):
    """As in the inner model over one row "source target": distance 0 is the last target token, the farthest the first
    source token."""
    params = params_of(ELMAN)
    found = gradient_flow(PrefixLM(ELMAN), {"model": params}, batch_of(ROWS, 14, 13, layout, layout))
    both = [np.append(row.source, row.target) for row in ROWS]
    whole = [Example(row.source, ids, np.append(ids[1:], row.label[-1])) for row, ids in zip(ROWS, both, strict=True)]
    expected = gradient_flow(ELMAN, params, batch_of(whole, 12, 24))
    np.testing.assert_array_equal(found[0], np.arange(24))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-9)


def test_attention_is_a_short_cut():
    """Over an encoder that forgets: with the last state alone the start of the source is lost, with attention not."""
    rows = examples(6, low=12, high=12)
    rows = [replace(row, target=row.target[:2], label=row.label[:2]) for row in rows]
    batch, far = batch_of(rows, 12, 2), {}
    for context in ("first", "every", "attention"):
        model = replace(SEQ2SEQ, encoder=Recurrent(Elman(6)), context=context, score="dot", tie_embeddings="all")
        params = params_of(model)
        cell = params["encoder"]["layer_0"]
        matrix = cell["recurrent"] * (0.3 / np.linalg.norm(cell["recurrent"], 2))
        params = params | {"encoder": {"layer_0": cell | {"recurrent": matrix}}}
        distance, norm = gradient_flow(model, params, batch)
        np.testing.assert_array_equal(distance, 2 + np.arange(12))
        far[context] = norm[-1] / norm[0]
    assert far["first"] < 0.3**11 and far["every"] < 0.3**11 and far["attention"] > 0.1


@dataclass
class Pushed(Oracle):
    """The oracle with `push_D` added to the encoder's state at `place`, before it is carried on."""

    place: int = 0
    push_D: float | np.ndarray = 0.0
    at: int = 0

    def _cell(self, side, *arguments):
        hidden_D = super()._cell(side, *arguments)
        if side == "encoder":
            hidden_D = hidden_D + (self.push_D if self.at == self.place else 0.0)
            self.at += 1
        return hidden_D

    def last_loss(self, row: Example) -> float:
        logits_V = self.read(row.source, row.target)[0][-1]
        return np.log(np.exp(logits_V).sum()) - logits_V[row.label[-1]]


@pytest.mark.parametrize("options", [{"context": "every"}, {"score": "additive", "input_feeding": True}], ids=str)
def test_the_derivative_is_the_total_one(options):
    """Finite differences: push the encoder's state at one place, let all that follows from it follow, read the loss."""
    model = replace(SEQ2SEQ, encoder=Recurrent(Elman(3)), decoder=Recurrent(Elman(4)), **options)
    params, (row,) = params_of(model), examples(1, high=5)
    _, norm = gradient_flow(model, params, batch_of([row], 6, 6))
    weights, pushes_DD, expected = named_float64(params), 1e-5 * np.eye(3), []
    for place in range(5):
        ends = [[Pushed(model, weights, place, sign * d).last_loss(row) for d in pushes_DD] for sign in (1, -1)]
        expected.append(np.linalg.norm(np.subtract(*ends) / 2e-5))
    np.testing.assert_allclose(norm[::-1], expected, rtol=1e-4)


def test_a_transformer_has_short_ways_only():
    """Of what the first encoder layer reads the farthest position has a gradient like the nearest one."""
    batch, params = batch_of(examples(4, low=6, high=6), 7, 6), params_of(TRANSFORMER)
    distance, norm = gradient_flow(TRANSFORMER, params, batch)
    np.testing.assert_array_equal(distance, 6 + np.arange(6))
    assert np.isfinite(norm).all() and norm.min() > 0.01 * norm.max()


@pytest.mark.parametrize("model", [ELMAN, SEQ2SEQ], ids=["target", "source"])
def test_rows_without_a_target_do_not_count(model):
    batch, params, some = batch_of(ROWS, 12, 12), params_of(model), np.arange(len(ROWS)) < 3
    empty = batch.replace(target_valid_BT=batch.target_valid_BT & some[:, None])
    found, expected = gradient_flow(model, params, empty), gradient_flow(model, params, batch_of(ROWS[:3], 12, 12))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_model_without_states_is_refused():
    model = FeedForwardLM(VOCAB, 3, 4, 5)
    with pytest.raises(UserError, match="FeedForwardLM has no recurrent network"):
        gradient_flow(model, params_of(model), batch_of(ROWS, 12, 12))


def test_the_figure(tmp_path):
    """A line a model on a log axis; an exact zero is a gap."""
    pytest.importorskip("matplotlib")
    flows = {"Elman": (np.arange(4), np.array([1.0, 0.1, 0.01, 0.0])), "LSTM": (np.arange(3), np.ones(3))}
    figure = gradient_flow_figure(flows)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log" and [line.get_label() for line in axes.lines] == ["Elman", "LSTM"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.0, 0.1, 0.01, np.nan])
    figure.savefig(tmp_path / "flow.svg")
