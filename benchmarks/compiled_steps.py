"""Bytes, launches, turns that wait for the host, and memory of training steps, from the programs compiled for a GPU.

    python -m benchmarks.compiled_steps                  # all presets, before and after; minutes each, no GPU needed
    python -m benchmarks.compiled_steps --only gpt2_small --layers 2

`before` replaces all choices of the platform (`jaxlm.distributed.platforms`) by those of a CPU, and takes the dtype and
the recomputation that the preset had; `after` is what `train` does on the GPU, with the micro-batches that `plan
--sweep` recommends. Attention is replaced by an element-wise stand-in, q k + v, in both: float32 has no kernel, and its
plain products would hide all else. What the kernels of 16-bit types move and launch comes on top: four
arrays of the size of the queries in the forward pass and eight in the backward pass, three or four launches a layer.

Each program is compiled in a process of its own and printed at once as a line of JSON; a table follows.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxlm.distributed.platforms import CHOICES

TOPOLOGY = "h100:1"
CPU_CHOICES = {name: value for name, value in asdict(CHOICES["cpu"]).items() if name != "dtype"}


LAYERS = ("layers", "encoder_layers", "decoder_layers")


@dataclass(frozen=True)
class Case:
    """A preset, its micro-batches before and after, and the most that it may take: bytes a step, launches."""

    experiment: str
    micro_batches: tuple[int, int] = (1, 1)
    dtype_before: str = "bfloat16"
    max_bytes: float = 0.0
    max_launches: int = 0


CASES = {
    "gpt2_small": Case("experiments.gpt2:small", (32, 8), max_bytes=1.2e12, max_launches=6500),
    "wmt_base": Case("experiments.wmt14:base_en_de", max_bytes=45e9, max_launches=1000),
    "wmt_base_float32": Case("experiments.wmt14:base_en_de", dtype_before="float32"),
    "wmt_big": Case("experiments.wmt14:big_en_de", max_bytes=80e9),
    "llama_1b": Case("experiments.llama:llama_1b", (64, 256), max_bytes=45e12),
}


def main() -> None:
    """Compile each case before and after, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas (default: all)")
    parser.add_argument("--variants", default="before,after", help="before, after, or both (the default)")
    parser.add_argument("--layers", type=int, default=0, help="layers of each stack (default: those of the preset)")
    parser.add_argument("--topology", default=TOPOLOGY, help=f"as of `jaxlm plan` (default: {TOPOLOGY})")
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(_measure(*options.worker, options.topology, options.layers)))
        return
    records = []
    for case in options.only.split(","):
        for variant in options.variants.split(","):
            command = [sys.executable, "-m", "benchmarks.compiled_steps", "--topology", options.topology]
            command += ["--layers", str(options.layers), "--worker", case, variant]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(json.dumps({"case": case, "variant": variant, "error": done.stderr[-500:]}), flush=True)
                continue
            print(line := done.stdout.splitlines()[-1], flush=True)
            records.append(json.loads(line))
    print(_table(records))


def _measure(name: str, variant: str, topology: str, layers: int) -> dict[str, Any]:
    from jaxlm.planner.topology import find_target, set_compiler_flags

    set_compiler_flags(topology)
    from jaxlm.experiment import load_experiment
    from jaxlm.planner.plan import PlanRequest, make_plan
    from jaxlm.training.run_options import RunOptions

    use_stand_in()
    case, is_before = CASES[name], variant == "before"
    experiment, fields = load_experiment(case.experiment), {}
    if layers:
        fields = {name: layers for name in LAYERS if hasattr(experiment.model, name)}
    if is_before:
        fields["dtype"] = case.dtype_before
    model = experiment.model.clone(**fields)
    experiment = replace(experiment, model=model, grad_accum=case.micro_batches[not is_before])
    options = RunOptions(choices=CPU_CHOICES) if is_before else RunOptions()
    plan = make_plan(PlanRequest(name, experiment, find_target(topology), run_options=options))
    assert plan.compile_seconds is not None, f"nothing here compiles for {topology}: {plan.compiler}"
    return {
        "case": name, "variant": variant, "topology": topology, "layers": layers or "all", "tokens": plan.tokens,
        "micro_batches": plan.accumulate, "bytes": plan.bytes_moved, "launches": plan.launches,
        "host_turns": plan.host_turns, "memory": plan.memory["total"], "fits": plan.fits,
        "layers_run": plan.layers, "within_bounds": _is_within(case, plan), "compiler": plan.compiler,
        "compile_seconds": round(plan.compile_seconds),
    }  # fmt: skip


def use_stand_in() -> None:
    """Replace attention, in this process, by q k + v."""
    from jaxlm.nn.attention import multi_head

    multi_head.dot_product_attention = _stand_in


def _stand_in(query_BTNH: Any, key_BSGH: Any, value_BSGH: Any, *_: Any, **__: Any) -> Any:
    """q k + v, element by element, each head of keys with its heads of queries."""
    rows, length, heads, width = query_BTNH.shape
    grouped = query_BTNH.reshape(rows, length, key_BSGH.shape[2], -1, width)
    mixed = grouped * key_BSGH[:, :length, :, None] + value_BSGH[:, :length, :, None]
    return mixed.reshape(query_BTNH.shape)


def _is_within(case: Case, plan: Any) -> bool:
    launches_fit = not case.max_launches or plan.launches <= case.max_launches
    return bool(plan.fits and launches_fit and (not case.max_bytes or plan.bytes_moved <= case.max_bytes))


def _table(records: list[dict[str, Any]]) -> str:
    titles = ["step", "", "micro-batches", "GB", "launches", "host turns", "GiB", "compiled in s"]
    lines = [f"| {' | '.join(titles)} |", "|" + len(titles) * "---|"]
    for r in records:
        figures = f"{r['bytes'] / 1e9:,.1f} | {r['launches']:,} | {r['host_turns']:,} | {r['memory'] / 2**30:.1f}"
        lines.append(f"| {r['case']} | {r['variant']} | {r['micro_batches']} | {figures} | {r['compile_seconds']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
