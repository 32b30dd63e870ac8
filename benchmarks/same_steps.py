"""A few training steps of every model family in two checkouts, compared bit for bit.

    export JAXLM_DATA=DIR
    python -m benchmarks.same_steps OLD_CHECKOUT NEW_CHECKOUT
    python -m benchmarks.same_steps OLD_CHECKOUT NEW_CHECKOUT --only transformer bert --steps 5
    python -m benchmarks.same_steps OLD_CHECKOUT NEW_CHECKOUT --keep old_results --json comparison.json

A change that only moves or renames code must not change what the code computes. Each family is
trained on the CPU with the same seed in both checkouts. Then these are compared:

    figures      every number in metrics.jsonl (training and validation) and in test.json (the test
                 split), except times, rates and memory
    parameters   every array of the newest checkpoint, read with orbax alone, so that it does not
                 matter how the classes of jaxlm are called

It prints one row a family: `equal`; `renamed`, if the values are equal and only the names of some
figures or parameters are not; `DIFFERS` with the first difference; or `FAILED` with the error. The
exit status is 0 if every family is equal.

With --keep, the results of OLD_CHECKOUT are stored in a folder, and a later run takes them from
there if it is on the same kind of machine with the same JAX, since other processors add numbers in
another order; OLD_CHECKOUT need not exist then. Both checkouts are run with the Python that runs
this script, which must have the libraries that jaxlm needs. The script itself imports no jaxlm.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.same_values import OUTCOMES, compare_values, read_arrays, read_figures

SEED = 1
TIME_LIMIT = 900
"""Seconds that one training run may take."""


@dataclass(frozen=True)
class Family:
    """A model family: its name, its smallest experiment, and the family that it is fine-tuned from.

    The experiments of `experiments.finetune` start from the folder `runs/bert`. Every run is made
    in `runs/NAME`, so the family that they start from must be called `bert`.
    """

    name: str
    experiment: str
    starts_from: str = ""


FAMILIES = (
    Family("ngram", "experiments.ngram:shakespeare"),
    Family("ngram-kneser-ney", "experiments.ngram:shakespeare_kn"),
    Family("feedforward-lm", "experiments.feedforward_lm:wikitext2"),
    Family("elman-lm", "experiments.rnn_lm:shakespeare_elman"),
    Family("lstm-lm", "experiments.rnn_lm:shakespeare_lstm"),
    Family("lstm-lm-dropout", "experiments.rnn_lm:shakespeare"),
    Family("gru-lm", "experiments.rnn_lm:shakespeare_gru"),
    Family("seq2seq-first", "experiments.ladder:minilang_first"),
    Family("seq2seq-every", "experiments.ladder:minilang_every"),
    Family("seq2seq-bahdanau", "experiments.ladder:minilang_additive"),
    Family("seq2seq-luong-dot", "experiments.ladder:minilang_dot"),
    Family("seq2seq-luong-general", "experiments.ladder:minilang_general"),
    Family("lstm-prefix-lm", "experiments.ladder:minilang_one_network"),
    Family("transformer", "experiments.quickstart"),
    Family("transformer-buckets", "experiments.ladder:minilang_transformer"),
    Family("transformer-bpe", "experiments.multi30k:smoke"),
    Family("gpt", "experiments.char_gpt:cpu"),
    Family("gpt-rotary", "experiments.char_gpt:cpu_rotary"),
    Family("llama", "experiments.llama:shakespeare"),
    Family("bert", "experiments.bert:mini"),
    Family("t5", "experiments.t5:spans"),
    Family("prefix-lm", "experiments.t5:prefix"),
    Family("tagger", "experiments.tagging:minilang"),
    Family("tagger-crf", "experiments.tagging:wikiann_es"),
    Family("bilstm-classifier", "experiments.sentiment:opinion"),
    Family("attention-classifier", "experiments.sentiment:sst2"),
    Family("bag-of-words", "experiments.sentiment:opinion_bag"),
    Family("bag-of-words-cnn", "experiments.sentiment:umsab_es"),
    Family("sentence-pair", "experiments.finetune:sick_scratch"),
    Family("regression", "experiments.finetune:relatedness_scratch"),
    Family("transformer-tagger", "experiments.finetune:ewt_scratch"),
    Family("fine-tuning", "experiments.finetune:sick", starts_from="bert"),
    Family("fine-tuning-head", "experiments.finetune:sick_frozen", starts_from="bert"),
    Family("fine-tuning-lora", "experiments.finetune:sick_lora", starts_from="bert"),
)
BY_NAME = {family.name: family for family in FAMILIES}


@dataclass(frozen=True)
class Side:
    """One of the two checkouts, and the scratch folder in which its runs are made."""

    checkout: Path
    folder: Path


@dataclass(frozen=True)
class Result:
    """The result of one run of a family: its settings, its figures by name, its parameters by path."""

    about: dict[str, Any]
    figures: dict[str, float]
    parameters: dict[str, np.ndarray]


class RunFailed(Exception):
    """A run of a checkout that ended with an error; the message says which run and why."""


READ_PARAMETERS = """
import sys
from pathlib import Path

import jax
import jaxlm
import numpy as np
import orbax.checkpoint

checkout, checkpoint, file = sys.argv[1:]
if not Path(jaxlm.__file__).resolve().is_relative_to(checkout):
    sys.exit(f"{jaxlm.__file__} was imported, which is not in {checkout}")
tree = orbax.checkpoint.StandardCheckpointer().restore(checkpoint)
leaves = jax.tree_util.tree_leaves_with_path(tree)
named = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
np.savez(file, **named)
"""
"""The program that copies the parameters of a checkpoint to an .npz file."""


def main() -> int:
    """Compare the families, print a row for each, and return the exit status."""
    options = parse_options()
    rows = []
    with tempfile.TemporaryDirectory(prefix="same_steps_") as scratch:
        old = Side(options.old.resolve(), Path(scratch) / "old")
        new = Side(options.new.resolve(), Path(scratch) / "new")
        for name in options.only:
            rows.append(compare_family(BY_NAME[name], old, new, options.steps, options.keep))
            print(format_row(rows[-1]), flush=True)
    equal = sum(row["result"] == "equal" for row in rows)
    print(f"{equal} of {len(rows)} families are equal after {options.steps} steps")
    if options.json:
        comparison = {"benchmark": "same_steps", "steps": options.steps, "seed": SEED, "families": rows}
        options.json.write_text(json.dumps(comparison, indent=1) + "\n", encoding="utf-8")
    return 0 if equal == len(rows) else 1


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("new", type=Path, metavar="NEW_CHECKOUT")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="training steps (default: 20)")
    text = f"families to compare (default: all): {', '.join(BY_NAME)}"
    parser.add_argument("--only", nargs="+", default=list(BY_NAME), choices=BY_NAME, metavar="NAME", help=text)
    text = "store the results of OLD_CHECKOUT in this folder, and take them from it if they are there"
    parser.add_argument("--keep", type=Path, metavar="DIR", help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison to this file")
    options = parser.parse_args()
    if not os.environ.get("JAXLM_DATA"):
        parser.error("JAXLM_DATA is not set: set it to the folder that holds the data sets")
    return options


def compare_family(family: Family, old: Side, new: Side, steps: int, keep: Path | None) -> dict[str, Any]:
    """Run a family in both checkouts, and return what is to be printed about it."""
    row: dict[str, Any] = {"family": family.name, "experiment": family.experiment}
    try:
        before = old_result(family, old, steps, keep)
        after = run_family(family, new, steps)
    except (RunFailed, FileNotFoundError) as error:  # a file may have another name in the new checkout
        return row | {"result": "FAILED", "details": [str(error)]}
    outcomes = [
        compare_values("figures", before.figures, after.figures),
        compare_values("parameters", before.parameters, after.parameters),
    ]
    return row | {
        "result": max((outcome for outcome, _ in outcomes), key=OUTCOMES.index),
        "details": [line for _, lines in outcomes for line in lines],
        "figures": len(after.figures),
        "arrays": len(after.parameters),
        "numbers": sum(array.size for array in after.parameters.values()),
        "old": before.about,
        "new": after.about,
    }


def format_row(row: dict[str, Any]) -> str:
    """A line for a family, and further lines for what differs."""
    line = f"{row['family']:22s} {row['result']}"
    if row["result"] != "FAILED":
        line = f"{line:31s} {row['figures']:3d} figures, {row['arrays']:3d} arrays of {row['numbers']:,} numbers"
        line += f"  ({row['old']['seconds']:.0f} s and {row['new']['seconds']:.0f} s)"
    return "\n    ".join([line, *row["details"]])


def old_result(family: Family, side: Side, steps: int, keep: Path | None) -> Result:
    """The result of the old checkout, from the folder of kept results if it is there."""
    if keep is None:
        return run_family(family, side, steps)
    record, arrays = keep / family.name / "result.json", keep / family.name / "parameters.npz"
    if record.exists() and arrays.exists():
        stored = json.loads(record.read_text(encoding="utf-8"))
        if all(stored["about"].get(name) == value for name, value in conditions(steps).items()):
            return Result(stored["about"], stored["figures"], read_arrays(arrays))
    result = run_family(family, side, steps)
    record.parent.mkdir(parents=True, exist_ok=True)
    np.savez(arrays, **result.parameters)
    stored = {"about": result.about, "figures": result.figures}
    record.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    return result


def run_family(family: Family, side: Side, steps: int) -> Result:
    """Train a family in a checkout and read what it wrote. Raises RunFailed."""
    if family.starts_from and not (side.folder / "runs" / family.starts_from).exists():
        run_family(BY_NAME[family.starts_from], side, steps)
    workdir = side.folder / "runs" / family.name
    start = time.perf_counter()
    if not workdir.exists():
        train(family, side, workdir, steps)
    seconds = time.perf_counter() - start
    about = asdict(family) | conditions(steps) | {"seconds": round(seconds, 1), "commit": commit(side)}
    return Result(about, dict(read_figures(workdir)), read_parameters(family, side, workdir))


def train(family: Family, side: Side, workdir: Path, steps: int) -> None:
    """Run `jaxlm train`. Raises RunFailed."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "jaxlm", "train", family.experiment]
    command += ["--steps", str(steps), "--seed", str(SEED), "--workdir", str(workdir)]
    # An experiment that is fine-tuned looks for runs/bert in the current folder.
    current_folder = side.folder if family.starts_from else side.checkout
    run_command(f"{family.experiment} in {side.checkout}", command, side, current_folder)


def run_command(what: str, command: list[str], side: Side, current_folder: Path) -> None:
    """Run a program with the jaxlm of a checkout. Raises RunFailed, with the last lines printed."""
    environment = os.environ | {
        "PYTHONPATH": str(side.checkout),
        "JAXLM_DATA": str(Path(os.environ["JAXLM_DATA"]).resolve()),
        "JAX_PLATFORMS": "cpu",
    }
    try:
        done = subprocess.run(
            command, cwd=current_folder, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunFailed(f"{what}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-3:]
        raise RunFailed(f"{what}: exit status {done.returncode}: {' | '.join(last)}")


def conditions(steps: int) -> dict[str, Any]:
    """The facts that must be equal for two runs of the same code to give the same bits."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"steps": steps, "seed": SEED, "processor": processor, "cores": cores, "jax": metadata.version("jax")}


def commit(side: Side) -> str:
    """The commit of a checkout, with a plus sign if files differ from it; empty without git."""
    try:
        head, status = (
            subprocess.run(["git", "-C", str(side.checkout), *words], capture_output=True, text=True, check=True).stdout
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.strip() + ("+" if status.strip() else "")


def read_parameters(family: Family, side: Side, workdir: Path) -> dict[str, np.ndarray]:
    """The parameters of the newest checkpoint of a run, by path. Raises RunFailed."""
    saved = [path for path in (workdir / "checkpoints").glob("*/params") if path.parent.name.isdecimal()]
    if not saved:
        raise RunFailed(f"{family.experiment} in {side.checkout}: its folder has no checkpoints/STEP/params")
    newest, file = max(saved, key=lambda path: int(path.parent.name)), workdir / "parameters.npz"
    command = [sys.executable, "-c", READ_PARAMETERS, str(side.checkout), str(newest), str(file)]
    run_command(f"parameters of {family.experiment} in {side.checkout}", command, side, side.checkout)
    return read_arrays(file)


if __name__ == "__main__":
    sys.exit(main())
