"""The accuracy of runs of `experiments.prompting:retrieve` by the distance to the last pair of the same symbol.

    python -m experiments.in_context.distances runs/retrieve runs/retrieve_curriculum

A model with induction heads answers at every distance; one that looks a fixed number of tokens back, at small ones
only.
"""

import argparse
from collections import defaultdict

import jax
import numpy as np

import jaxlm
from experiments.in_context.episodes import Episodes
from jaxlm.types import Batch


def accuracy_by_distance(workdir: str, count: int = 400) -> dict[int, float]:
    """Accuracy on labels of symbols that have occurred, by distance in pairs, where it has more than 20 answers."""
    run, rows = jaxlm.load(workdir), list(Episodes(7, ((count, 4, 33),)))
    label_BT = np.array([run.tokenizer.encode([row])[0] for row in rows], np.int32)
    target_BT = np.concatenate([np.full((count, 1), run.tokenizer.special.bos, np.int32), label_BT[:, :-1]], 1)
    batch = Batch(target_BT=target_BT, target_valid_BT=np.ones(target_BT.shape, bool))
    logits_BTV = jax.jit(lambda params, batch: run.model.apply({"params": params}, batch))(run.params, batch)
    right_BP = (np.asarray(logits_BTV).argmax(-1) == label_BT)[:, 1::2]
    answers: dict[int, list[bool]] = defaultdict(list)
    for symbols, right in zip(label_BT[:, ::2].tolist(), right_BP.tolist(), strict=True):
        last: dict[int, int] = {}
        for place, symbol in enumerate(symbols):
            if symbol in last:
                answers[place - last[symbol]].append(right[place])
            last[symbol] = place
    return {distance: float(np.mean(x)) for distance, x in sorted(answers.items()) if len(x) > 20}


def main() -> None:
    """Print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+")
    for workdir in parser.parse_args().workdirs:
        figures = accuracy_by_distance(workdir)
        print(f"{workdir:28}" + " ".join(f"{distance}: {value:.2f}" for distance, value in figures.items()))


if __name__ == "__main__":
    main()
