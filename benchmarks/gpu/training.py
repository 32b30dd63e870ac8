"""Parts 4 to 6: training steps by `jaxlm bench`, with the switches on and off, and traces of the best runs."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import Session
from benchmarks.gpu.trace import record_kernels

GPT2 = ["experiments.gpt2:small"]
SCANNED = ["--choices", "unrolled_depth=0"]

RUNS: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "gpt2": ("llm.c: 475k tokens/s, MFU >= 50 %", [*GPT2, "--grad-accum", "8"], {}),
    "gpt2_scanned": ("fewer than gpt2", [*GPT2, *SCANNED, "--grad-accum", "8"], {}),
    "gpt2_full": ("fewer than gpt2", [*GPT2, *SCANNED, "--remat", "full", "--grad-accum", "8"], {}),
    "gpt2_small_parts": ("fewer than gpt2", [*GPT2, "--grad-accum", "32"], {}),
    "gpt2_dynamic_loss": ("fewer than gpt2", [*GPT2, "--choices", "static_loss=0", "--grad-accum", "8"], {}),
    "gpt2_o1": ("as gpt2", [*GPT2, "--grad-accum", "8"], {"JAX_OPTIMIZATION_LEVEL": "O1"}),
    "gpt2_xl": ("MFU >= 60 %", ["experiments.gpt2:xl", "--batching.rows", "64", "--grad-accum", "8"], {}),
    "wmt14_base": ("> 600k real tokens/s", ["experiments.wmt14:base_en_de", "--model.dtype", "bfloat16"], {}),
    "wmt14_base_float32": ("", ["experiments.wmt14:base_en_de", "--model.dtype", "float32"], {}),
    "wmt14_big": ("340k real tokens/s", ["experiments.wmt14:big_en_de", "--model.dtype", "bfloat16"], {}),
    "llama_1b": ("MFU >= 55 %", ["experiments.llama:llama_1b", "--batching.rows", "8", "--grad-accum", "4"], {}),
}
"""Name of a run -> what would be good, its words after `jaxlm bench`, and its environment."""

DRY_WORDS = {
    "gpt2": "--model.vocab 512 --model.width 32 --model.heads 2 --model.hidden 64 --model.layers 2 "
    "--batching.length 32 --batching.rows 8 --task.windows.length 32",
    "llama": "--model.vocab 512 --model.width 32 --model.heads 4 --model.kv_heads 2 --model.hidden 64 "
    "--model.layers 2 --batching.length 32 --batching.rows 4",
    "wmt14": "--model.vocab 512 --model.width 32 --model.heads 2 --model.hidden 64 --model.encoder_layers 2 "
    "--model.decoder_layers 2 --batching.tokens 512 --batching.max_length 32",
}
"""Beginning of a run's name -> the words that make it small."""


def measure(session: Session, name: str) -> None:
    """Tokens/s, MFU, memory and step times of one run."""
    good = RUNS[name][0]
    report = run_bench(session, name, ["--steps", str(session.size(8, 2))])
    session.figure(f"{name}, tokens/s", report["tokens_per_second"], "real tokens/s", good)
    session.figure(f"{name}, MFU", report["mfu"], "of the dense peak; causal attention in full, halved", good)
    session.figure(f"{name}, step", report["step_seconds"], "s")
    memory = {key: report[key] for key in ("peak_memory_bytes", "planned_memory_bytes")}
    session.figure(f"{name}, memory", memory, "bytes", "planned within a tenth of the peak")
    session.figure(f"{name}, compile", report["compile_seconds"], "s")


def trace_best(session: Session, family: str) -> None:
    """The ten longest kernels of the fastest run whose name begins with the family's."""
    rates = {
        line["figure"].partition(",")[0]: line["value"]
        for line in session.figures()
        if line["figure"].startswith(family) and line["figure"].endswith("tokens/s")
    }
    best = max(rates, key=rates.__getitem__) if rates else next(name for name in RUNS if name.startswith(family))
    steps = session.size(3)
    with tempfile.TemporaryDirectory() as folder:
        run_bench(session, best, ["--steps", str(steps), "--profile", folder])
        record_kernels(session, best, Path(folder), steps)


def run_bench(session: Session, name: str, words: list[str]) -> dict[str, Any]:
    """The JSON object of `jaxlm bench`."""
    _, run, environment = RUNS[name]
    small = DRY_WORDS[name.partition("_")[0]].split() if session.dry else []
    if session.dry and "--grad-accum" in run:
        small += ["--grad-accum", "2"]
    options = ["--synthetic", "--no-compile-times", "--json"]
    return run_jaxlm(["bench", *run, *options, *words, *small], {} if session.dry else environment)


def run_jaxlm(words: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The JSON object that `jaxlm` prints last. Raises RuntimeError with the end of its messages if it fails."""
    command = [sys.executable, "-m", "jaxlm", *words]
    print("+", " ".join(command[2:]), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | (environment or {}))
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
