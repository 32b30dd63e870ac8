"""The feed-forward n-gram language model (Bengio et al. 2003) on the words of WikiText-2.

    jaxlm train experiments.feedforward_lm --workdir runs/feedforward

Five words are seen, as by the 5-gram of `experiments.ngram`, but through embeddings: histories that were never counted
have neighbours that were. Not run to its end yet.
"""

from experiments.rnn_lm import WORDS, on_wikitext2
from jaxlm.data.windows import Windows
from jaxlm.experiment import Experiment
from jaxlm.models.feedforward_lm import FeedForwardLM
from jaxlm.optim import AdamW, Cosine


def wikitext2() -> Experiment:
    """WikiText-2, order 5, width 256, tied embeddings, dropout .2."""
    model = FeedForwardLM(WORDS, order=5, width=256, hidden=256, direct=False, tie=True, dropout=0.2)
    return on_wikitext2(model, Windows(length=35, rows=32), AdamW(Cosine(peak=2e-3, warmup=200), clip=1.0), steps=5000)


if __name__ == "__main__":
    from jaxlm.cli.train import run_this_experiment

    run_this_experiment()
