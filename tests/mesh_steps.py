"""Five training steps of a tiny model, on a mesh or on one device, and how far two outcomes are apart."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import zoo
import zoo_labels

from jaxlm.models.tagger import Tagger
from jaxlm.optim import SGD, Constant
from jaxlm.parallel import layout, make_mesh
from jaxlm.placing import put_batch
from jaxlm.train.labels import Class, Labels
from jaxlm.train.objective import NextToken
from jaxlm.train.state import TrainState
from jaxlm.train.step import make_step

MESHES = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"data": 1, "tensor": 2},
    "sequence": {"data": 1, "sequence": 2},
    "data, fsdp, tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp, sequence, tensor": {"fsdp": 2, "sequence": 2, "tensor": 2},
}
# Plain descent with momentum: Adam would turn gradients that are zero but for rounding into steps of full size.
OPTIMIZER = SGD(Constant(0.1), momentum=0.9, clip=1.0)
STEPS = 5


def widened(model: Any) -> Any:
    """The model with a vocabulary that two and four devices can share."""
    return model.clone(model=widened(model.model)) if hasattr(model, "model") else model.clone(vocab=24)


FAMILIES = {name: widened(animal.model) for name, animal in zoo.ZOO.items() if not hasattr(animal.model, "fit")}
FAMILIES |= {f"label {name}": model for name, model in zoo_labels.ZOO.items()}


@lru_cache
def subject(name: str) -> tuple[Any, Any, list[Any]]:
    """What is minimised, the parameters to start from, and the batches."""
    model = FAMILIES[name]
    if name.startswith("label"):
        batches = [zoo_labels.batch_of(zoo_labels.texts(16, seed=seed)) for seed in range(STEPS)]
        return Labels() if isinstance(model, Tagger) else Class(), zoo_labels.params_of(model), batches
    batches = [zoo.batch_of(zoo.examples(16, seed=seed), 8, 8) for seed in range(STEPS)]
    return NextToken(0.1), zoo.params_of(model), batches


def trained(name: str, asked: dict[str, int] | None = None, split_moments: bool = False) -> tuple[Any, np.ndarray, Any]:
    """(state, loss of each step, the jitted step) after the steps."""
    objective, start, batches = subject(name)
    optimizer = OPTIMIZER.build(STEPS)
    mesh = make_mesh(asked) if asked else None
    params = jax.tree.map(jnp.array, start)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    if mesh is not None:
        state = jax.device_put(state, layout(state, mesh, split_moments))
    rate = OPTIMIZER.schedule.build(STEPS)
    step = make_step(FAMILIES[name], objective, optimizer, rate, 0, mesh=mesh, split_moments=split_moments)
    totals = []
    for batch in batches:
        state, metrics = step(state, batch if mesh is None else put_batch(batch, mesh))
        totals.append(float(metrics.total))
    return state, np.array(totals), step


alone = lru_cache(trained)


def difference(found: tuple, expected: tuple) -> float:
    """The largest relative one: of a step's loss, or of a parameter (Euclidean norms)."""
    losses = np.abs(found[1] / expected[1] - 1).max()
    pairs = zip(jax.tree.leaves(found[0].params), jax.tree.leaves(expected[0].params), strict=True)
    norms = [np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(b) for a, b in pairs]
    return float(max(losses, *norms))
