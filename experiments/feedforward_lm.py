"""The feed-forward n-gram language model (Bengio et al. 2003) on the words of WikiText-2.

    jaxlm train experiments.feedforward_lm --workdir runs/feedforward

Four words predict the next one, as in the 5-gram of `experiments.ngram`, but through embeddings: histories that were
never counted have neighbors that were. Valid perplexity 229.1 and 195.3 after one and two epochs
(the 5-gram has 234.9), in an hour on one CPU core.
"""

from experiments.rnn_lm import WORDS, for_words, on_wikitext2
from jaxlm import Experiment, FeedForwardLM, Windows, run_this_experiment


def wikitext2() -> Experiment:
    """WikiText-2, order 5, width 256, tied embeddings, dropout .1; windows in random order, as it remembers nothing."""
    model = FeedForwardLM(
        WORDS,
        order=5,
        width=256,
        hidden=256,
        direct_connections=False,
        tie_embeddings=True,
        dropout=0.1,
        embedding_scale=4.0,
    )
    return on_wikitext2(model, Windows(length=35, rows=16, carry_state=False), for_words(peak=3e-3), steps=7460)


if __name__ == "__main__":
    run_this_experiment()
