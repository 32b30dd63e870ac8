"""Parts 7 and 9: a run with a published loss, and runs that should give the same bits."""

import gzip
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import Session
from benchmarks.gpu.training import run_jaxlm

PUBLISHED = 1.4697
"""Validation loss of nanoGPT's character model, nats a character (its README)."""

DRY_WORDS = "--model.width 32 --model.heads 2 --model.hidden 64 --model.layers 2 --batching.length 32 --batching.rows 8"


def published_loss(session: Session) -> None:
    """Train `experiments.char_gpt:gpu` to its end: its validation loss and its time."""
    with tempfile.TemporaryDirectory() as folder:
        steps = ["--evaluate-every", "10", "--checkpoint-every", "10"] if session.dry else []
        summary = _train(session, Path(folder) / "run", session.size(160) if session.dry else 5000, steps)
        loss = summary["valid/nll"]
        session.figure("char_gpt, validation loss", loss, "nats a character", f"{PUBLISHED} within 0.02",
                       None if session.dry else loss < PUBLISHED + 0.02)  # fmt: skip
        session.figure("char_gpt, time", summary["seconds"], "s", "about 40")


def same_bits(session: Session, exact: bool) -> None:
    """Twenty steps twice, and stopped at ten and resumed: parameters bit for bit equal or not, and the time."""
    label = "--exact" if exact else "as it is"
    words = ["--evaluate-every", "20", "--checkpoint-every", "10", "--keep-checkpoints", "3", *["--exact"] * exact]
    must = exact or session.dry  # a CPU computes the same bits without the option, too
    with tempfile.TemporaryDirectory() as folder:
        first, second = (Path(folder) / name for name in ("first", "second"))
        summary = _train(session, first, 20, words)
        _train(session, second, 20, words)
        equal = _equal(first, second)
        session.figure(f"{label}, twice the same", equal, "", "True", equal if must else None)
        shutil.rmtree(second / "checkpoints" / "20")
        _train(session, second, 20, words)
        equal = _equal(first, second)
        session.figure(f"{label}, resumed the same", equal, "", "True", equal if must else None)
        session.figure(f"{label}, time", summary["seconds"], "s", "the option costs little")


def _train(session: Session, folder: Path, steps: int, words: list[str]) -> dict[str, Any]:
    small = DRY_WORDS.split() if session.dry else []
    data = {"JAXLM_DATA": str(_synthetic_data(folder.parent))} if session.dry else {}
    command = ["train", "experiments.char_gpt:gpu", "--workdir", str(folder), "--steps", str(steps), *words, *small]
    return run_jaxlm(command, data)


def _synthetic_data(folder: Path) -> Path:
    """A data folder whose tiny Shakespeare is random text of as many characters."""
    import random
    import string

    file = folder / "data/tinyshakespeare/input.txt.gz"
    if not file.exists():
        file.parent.mkdir(parents=True)
        draw = random.Random(0)
        letters = string.ascii_letters + string.digits + " ."
        lines = ("".join(draw.choices(letters, k=60)) for _ in range(1000))
        with gzip.open(file, "wt", encoding="utf-8") as stream:
            stream.write("\n".join(lines))
    return folder / "data"


def _equal(first: Path, second: Path) -> bool:
    """Equal parameters of the last checkpoints, bit for bit."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process only reads
    import jax
    import numpy as np

    import jaxlm

    params = [jax.tree.leaves(jaxlm.load(folder).params) for folder in (first, second)]
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*params, strict=True))
