"""Ten minutes on one GPU: what is correct, how fast it is, and where the time goes, most instructive figures first.

    benchmarks/gpu.sh --out figures                     everything, within 570 seconds
    benchmarks/gpu.sh --out figures --only 4,6          some parts, or single tasks: 4.gpt2_scanned
    benchmarks/gpu.sh --out figures --wheels wheels     after `python -m benchmarks.gpu.wheels wheels`
    python -m benchmarks.gpu --out figures --dry        small shapes on the CPU, to test the script itself

Every task is a process of its own under a time limit, and each figure is a line of `gpu.jsonl` in the folder of --out
as soon as it is measured, so that a task that fails or is cut off costs only itself. Output is in `gpu.log`.

| part | content |
|---|---|
| 0 | clocks, versions, `jaxlm doctor`, ceilings of products and of memory |
| 1 | attention: error and time of each implementation |
| 2 | LSTM: cuDNN against the loop |
| 3 | loss: sizes of chunks |
| 4, 5 | training steps: GPT-2 and Llama; Transformer base and big |
| 6 | the ten longest kernels of the best runs, and idle time |
| 7 | a run to its published loss (needs tiny Shakespeare in $JAXLM_DATA) |
| 8 | decoding: beam search and sampling |
| 9 | the same bits twice, and after a resume |
| 10 | a batch that does not fit; the loader |
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.figures import FIGURES_FILE, Session
from benchmarks.gpu.tasks import TASKS, Task

DRY_SECONDS = 600
"""The time limit of a task in a dry run, whose CPU is slow."""

LEAST_SECONDS = 10
"""A task is not started with less time left."""


def main() -> int:
    """Run the tasks one after the other. Returns 1 if one failed or a figure is wrong."""
    options = _options()
    if options.worker:
        return work(options.worker, options.out, options.dry)
    options.out.mkdir(parents=True, exist_ok=True)
    environment = _environment(options)
    start, outcomes = time.monotonic(), {}
    for task in select(options.only):
        left = options.budget - (time.monotonic() - start)
        if left < LEAST_SECONDS:
            outcomes[task.name] = "not started: the time is over"
            continue
        limit = min(left, DRY_SECONDS if options.dry else task.seconds)
        outcomes[task.name] = run_task(task, options.out, limit, options.dry, environment)
    wrong = [line for line in Session(options.out, "").figures() if line["correct"] is False]
    print("\n".join(f"{name:28} {outcome}" for name, outcome in outcomes.items()))
    print("\n".join(f"WRONG: {line['task']}: {line['figure']}: {line['value']}" for line in wrong))
    return int(bool(wrong) or any(not outcome.startswith("done") for outcome in outcomes.values()))


def select(only: str) -> list[Task]:
    """The tasks of the parts or names in `only`, separated by commas; all if it is empty. Raises SystemExit."""
    wanted_names = list(filter(None, only.split(",")))
    unknown = [name for name in wanted_names if name not in TASKS and name not in {str(t.part) for t in TASKS.values()}]
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: expected parts 0 to 10, or tasks: {', '.join(TASKS)}")
    return [task for task in TASKS.values() if not only or {task.name, str(task.part)} & set(wanted_names)]


def run_task(task: Task, out: Path, limit: float, dry: bool, environment: dict[str, str]) -> str:
    """Run a task in a process of its own; its outcome in words, which is a line of the figures too."""
    print(f"== {task.name} (at most {limit:.0f} s)", flush=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--worker", task.name, "--out", str(out)] + ["--dry"] * dry
    environment = environment | ({} if dry else task.environment)
    start = time.monotonic()
    log_file = out / "gpu.log"
    with log_file.open("a", encoding="utf-8") as log:
        log.write(f"== {task.name}\n")
        log.flush()
        begin = log.tell()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            outcome = "done" if process.wait(limit) == 0 else f"failed with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            outcome = "cut off"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its own session: the task and what it started
                process.wait()
    seconds = time.monotonic() - start
    output = log_file.read_bytes()[begin:].decode(errors="replace")
    shown = [line for line in output.splitlines() if line.startswith("  ")] if outcome == "done" else [output[-1500:]]
    print("\n".join(shown), flush=True)
    outcome = f"{outcome} after {seconds:.0f} s"
    Session(out, task.name, dry).figure("outcome", outcome)
    return outcome


def work(name: str, out: Path, dry: bool) -> int:
    """Run one task in this process."""
    from jaxlm import runtime

    runtime.configure_process()  # the shared cache of compiled programs
    TASKS[name].run(Session(out, name, dry))
    return 0


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """The environment of the tasks, with the wheels installed if --wheels names a folder of them."""
    environment = dict(os.environ)
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    if options.wheels:
        from benchmarks.gpu.wheels import install

        paths.insert(0, str(install(options.wheels)))
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if options.dry:
        environment["JAX_PLATFORMS"] = "cpu"
    return environment


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=f"for {FIGURES_FILE} and gpu.log")
    parser.add_argument("--only", default="", metavar="PARTS", help="parts or tasks, separated by commas")
    parser.add_argument("--dry", action="store_true", help="small shapes on the CPU: a test of the script")
    parser.add_argument("--budget", type=float, default=570, metavar="SECONDS", help="time for all tasks (570)")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels to install for the tasks")
    parser.add_argument("--worker", choices=TASKS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
