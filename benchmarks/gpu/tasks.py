"""The tasks of the ten minutes on a GPU in their order, each in a process of its own under a time limit."""

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.gpu import attention, decoding, ground, limits, loss, lstm, runs, training
from benchmarks.gpu.figures import Session

COMMAND_BUFFERS = {"XLA_FLAGS": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"}


@dataclass(frozen=True)
class Task:
    """A measurement of one part.

    Attributes:
      name: `PART.NAME`.
      run: a function of the session, which writes figures.
      seconds: the time limit on a GPU.
      environment: variables that must be set before JAX is imported; not set in a dry run.
    """

    name: str
    run: Callable[[Session], None]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def part(self) -> int:
        return int(self.name.partition(".")[0])


def _tasks() -> list[Task]:
    def task(part: int, name: str, function: Callable, seconds: float, *arguments: object, **environment: str) -> Task:
        return Task(f"{part}.{name}", lambda session: function(session, *arguments), seconds, environment)

    tasks = [task(0, "machine", ground.machine, 40), task(0, "ceilings", ground.ceilings, 40)]
    tasks += [task(1, case, attention.measure, 40, case) for case in attention.CASES]
    tasks += [task(2, shape, lstm.measure, 40, shape) for shape in lstm.SHAPES]
    tasks += [task(3, shape, loss.measure, 40, shape) for shape in loss.SHAPES]
    families = {4: "gpt2", 5: "wmt14"}
    late = ("gpt2_xl", "llama_1b")
    for part, family in families.items():
        names = [name for name in training.RUNS if name.startswith(family) and name not in late]
        tasks += [task(part, name, training.measure, 70, name) for name in names]
    tasks += [task(6, family, training.trace_best, 60, family) for family in families.values()]
    tasks += [task(7, "char_gpt", runs.published_loss, 120)]
    tasks += [task(8, "beam", decoding.beam, 60)]
    tasks += [task(8, f"sampling_{rows}", decoding.sampling, 60, rows) for rows in (8, 64)]
    tasks += [task(8, "beam_command_buffers", decoding.beam, 60, **COMMAND_BUFFERS)]
    tasks += [task(9, "as_it_is", runs.same_bits, 90, False), task(9, "exact", runs.same_bits, 90, True)]
    tasks += [task(10, "too_large", limits.too_large, 90), task(10, "loader", limits.loader, 30)]
    # The large models last: each takes a minute, and what comes before explains most of what they show.
    for name in late:
        tasks += [task(4, name, training.measure, 120, name), task(6, name, training.trace_best, 120, name)]
    return tasks


TASKS = {task.name: task for task in _tasks()}
