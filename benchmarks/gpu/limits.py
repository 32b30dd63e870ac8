"""Part 10: a batch that does not fit, and the speed of the loader on this host."""

import time

from benchmarks.gpu.figures import Session
from benchmarks.gpu.training import GPT2, RUNS, run_bench, run_jaxlm

TOO_LARGE = ["--remat", "none", "--grad-accum", "1", "--batching.rows", "4096"]


def too_large(session: Session) -> None:
    """The message of a step that does not fit, and the forecast of `jaxlm plan` for it."""
    RUNS["gpt2_too_large"] = ("", [*GPT2, *TOO_LARGE], {})
    try:
        run_bench(session, "gpt2_too_large", ["--steps", "1"])
        session.figure("too large a batch", "it ran", good="only in a dry run", correct=session.dry)
    except RuntimeError as error:
        text = str(error)
        session.figure(
            "too large a batch", text[-600:], good="one sentence with a cure", correct="Traceback" not in text
        )
    if not session.dry:  # where the program does fit, the plan of a dry run says nothing
        try:
            plan = run_jaxlm(["plan", *GPT2, *TOO_LARGE, "--json"])
            session.figure("too large a batch, plan", plan["fits"], good="False")
        except RuntimeError as error:
            session.figure("too large a batch, plan", str(error)[-600:], good="does not fit")


def loader(session: Session) -> None:
    """Batches/s of 25,000 tokens with one thread, from sentences of 5 to 60 tokens."""
    import numpy as np

    from jaxlm.data.batching.bucketing import Buckets
    from jaxlm.data.batching.loader import DataLoader
    from jaxlm.data.ragged import Ragged

    rng, count = np.random.default_rng(0), session.size(200_000)
    columns = {}
    for name in ("source", "target"):
        offsets = np.concatenate([[0], np.cumsum(rng.integers(5, 60, count))])
        columns[name] = Ragged(rng.integers(4, 37_000, offsets[-1], np.int32), offsets)
    batches = Buckets(tokens=session.size(25_000), max_shapes=12).batches(columns, 0)
    steps = session.size(320, 20)
    with DataLoader(batches, 0, 1) as batches_ahead:
        next(batches_ahead)
        start = time.perf_counter()
        for _ in range(steps):
            next(batches_ahead)
    session.figure("loader, one thread", steps / (time.perf_counter() - start), "batches/s of 25k tokens", "> 80")
