"""The published model that `make weights` fetches, against a forward pass in NumPy; skipped without its file.

`python -m pytest -s tests/huggingface/test_gguf_weights.py` prints the figures.
"""

from pathlib import Path

import numpy as np
import pytest
from references.gguf_forward import logprob

import jaxlm
from jaxlm.huggingface.gguf import read_gguf
from jaxlm.huggingface.workdir import import_model

FILE = Path(__file__).resolve().parents[2] / "weights" / "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="no weights: run `make weights`")

SENTENCE = "The capital of France is Paris, and the city is known for its museums, cafes and the Eiffel Tower."
CHAT = (
    "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)
"""A text begins with the model's BOS, `<|im_start|>`, which is therefore left out."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "run"
    import_model(FILE, folder)
    return jaxlm.load(folder)


def test_scores_are_those_of_numpy(pipeline, capsys):
    """The sum of log-probabilities, EOS included, and what forgetting the permutation of rows would cost."""
    file, special = read_gguf(FILE), pipeline.tokenizer.special
    ids = pipeline.tokenizer.encode([SENTENCE])[0].tolist()
    row, label = [special.start, *ids], [*ids, special.eos]
    sums = [logprob(file, row, kept)[range(len(row)), label].sum() for kept in (True, False)]
    (score,) = pipeline.score([SENTENCE])
    plain = [-logprob(file, ids, kept)[range(len(ids) - 1), ids[1:]].mean() for kept in (True, False)]
    with capsys.disabled():
        print(f"\njaxlm {score.logprob:.4f}, NumPy {sums[0]:.4f}; without BOS and EOS {plain[0]:.3f} nats a token "
              f"(perplexity {np.exp(plain[0]):.2f}), with rows permuted {plain[1]:.3f}")  # fmt: skip
    assert abs(score.logprob - sums[0]) < 1e-3 and score.tokens == len(row)
    assert sums[1] < sums[0] - 5 and plain[1] > plain[0] + 0.3


def test_it_answers(pipeline):
    (sample,) = pipeline.generate([CHAT], sampler=jaxlm.Sampler(temperature=0.0), max_tokens=20)
    assert (sample.text, sample.reason) == ("The capital of France is Paris.", "stop")
