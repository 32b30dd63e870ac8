"""The checkpoints of a run: written in the background, the newest and the best one kept, checked when they are read.

A step that is damaged is skipped for the one before it, with a line on stderr. `step_io` has the layout of a step.
"""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax

from jaxlm.checkpoint import step_io
from jaxlm.checkpoint.step_io import CorruptCheckpoint
from jaxlm.errors import SaveError, UserError
from jaxlm.pytree import add_floats, divide_floats, unflatten


class Checkpoints:
    """The checkpoints in `folder`.

    Args:
      keep: number of newest steps to keep; None: all.
      keep_best: name of a metric; the step at which it was highest is kept as well.
      read_only: whether to create, rename and delete nothing.

    A state is a pytree with `params`: a mapping with that key, or a dataclass with that field and `replace`.
    """

    def __init__(
        self, folder: Path | str, keep: int | None = 3, keep_best: str | None = None, *, read_only: bool = False
    ):
        if keep is not None and keep < 1:
            raise UserError(f"keep = {keep} checkpoints: expected at least 1, or None for all")
        self.folder = Path(folder)
        self.keep, self.keep_best, self.read_only = keep, keep_best, read_only
        self._manager: Any = None
        self._metrics: dict[int, float | None] = {}
        self.interim_steps: set[int] = set()  # saved because a run was stopped there: each goes with the next save
        self._corrupt_steps: set[int] = set()
        self._current_step: int | None = None  # the step last saved or restored by this object
        self._barrier = step_io.SaveBarrier()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def save(self, step: int, state: Any, meta: dict, metric: float | None = None, *, replace: bool = False) -> bool:
        """Start to write `state` and `meta` (JSON) as `step`; the state may be donated as soon as this returns.

        `metric`: the value of `keep_best`. False: this step is the one last saved or restored, and not to be replaced.
        Raises UserError if the previous save failed, or if this step or later ones exist.
        """
        if self.read_only:
            raise ValueError(f"{self.folder} was opened to be read only")
        if metric is not None and self.keep_best is None:
            raise ValueError(f"a metric was given without its name: Checkpoints({str(self.folder)!r}, keep_best=...)")
        json.dumps(meta)
        if step == self._current_step and not replace:
            return False
        with self._save_errors():
            self._open_manager().wait_until_finished()  # one save at a time; its error belongs to this call
            if replace:
                self._open_manager().delete(step)
        self._quarantine()
        if (newest := max(self.steps(), default=-1)) >= step:
            raise UserError(
                f"{self.folder} holds step {newest}, and step {step} was to be saved: "
                "continue from the newest step, or train into another --workdir"
            )
        named = None if metric is None else {"name": self.keep_best, "value": float(metric)}
        if self.keep_best is not None:
            self._read_metrics(self.steps())
        self._metrics[step] = _metric_value(named, self.keep_best)
        self._current_step = step
        with self._save_errors():
            step_io.write_step(self._open_manager(), step, _split_params(state), meta, named)
        return True

    def wait(self) -> None:
        """Wait until the current save is on disk. Raises UserError if it failed."""
        if self._manager is not None:
            with self._save_errors():
                self._manager.wait_until_finished()

    def check_save(self) -> None:
        """Raise UserError if the save in the background has failed. Cheap enough for every step."""
        with self._save_errors():
            if self._barrier.failure:
                raise self._barrier.failure

    def close(self) -> None:
        """Wait, and end Orbax's threads. Raises UserError if the last save failed."""
        self.wait()
        if self._manager is not None:
            self._manager.close()
        self._manager = None

    def steps(self) -> list[int]:
        """The steps in the folder, oldest first. A damaged step is noticed only when it is read."""
        if self._manager is None and not self.folder.is_dir():
            return []
        return sorted(self._open_manager().all_steps(read=self.read_only))

    def best_step(self) -> int | None:
        """The step at which the metric was highest (the first of equals); None if none was saved with one."""
        self.wait()
        return _step_of_best(self._read_metrics(self.steps()))

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict, int]:
        """(state, meta, step) of `step`, or of the newest whole step.

        `abstract_state` is a state of arrays or ShapeDtypeStructs, with the shardings of the result (None: the first
        device). Raises UserError if leaves, shapes or dtypes differ, if a newer jaxlm wrote it, or if no step is whole.
        """
        trees, meta, self._current_step = self._read_newest(_split_params(abstract_state), step)
        params, rest = trees["params"], trees["rest"]
        state = {**rest, "params": params} if isinstance(rest, Mapping) else rest.replace(params=params)
        return state, meta, self._current_step

    def restore_params(self, abstract_params: Any, step: int | None = None) -> tuple[Any, dict, int]:
        """(params, meta, step) like `restore`, without reading the rest of the state."""
        trees, meta, step = self._read_newest({"params": abstract_params}, step)
        return trees["params"], meta, step

    def abstract_params(self, step: int | None = None) -> Any:
        """Shapes and dtypes of the parameters of a step (None: the newest), for models whose data decide on them."""
        step = self.steps()[-1] if step is None else step
        return unflatten(step_io.read_metadata(self._open_manager(), self.folder, step)["leaves"]["params"])

    def average(self, abstract_params: Any, last: int, up_to: int | None = None) -> tuple[Any, list[int]]:
        """(mean of the parameters of the `last` newest whole steps up to `up_to`, those steps).

        The sum is in float32, and one step is in memory at a time. Leaves that are not floating point are those of the
        newest step.
        """
        self.wait()
        total: Any = None
        used: list[int] = []
        steps = [step for step in reversed(self.steps()) if up_to is None or step <= up_to]
        for trees, _, step in islice(self._read_whole(steps, {"params": abstract_params}), last):
            total = add_floats(total, trees["params"])
            used.insert(0, step)
        if not used or len(used) < last:
            whole_steps = f"{len(used)} whole ones{'' if up_to is None else f' up to step {up_to}'}"
            raise UserError(
                f"expected the last {last} checkpoints for their mean, but {self.folder} has {whole_steps}: "
                f"average 1 to {len(used)}, or train with keep_checkpoints = {last}"
            )
        return divide_floats(total, len(used), abstract_params), used

    def _read_newest(self, trees: dict[str, Any], step: int | None) -> tuple[dict[str, Any], dict, int]:
        """Read `step`, or the newest step that is whole."""
        self.wait()
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            content = f"the steps {', '.join(map(str, steps))}" if steps else "no checkpoint"
            raise UserError(
                f"{self.folder} holds {content}{'' if step is None else f', not step {step}'}: "
                "check the path; a run that has just begun has not saved yet"
            )
        for result in self._read_whole(reversed(steps) if step is None else [step], trees):
            return result
        tried = f"all {len(steps)} steps" if step is None else f"step {step}"
        raise UserError(
            f"{self.folder}: {tried} cannot be read (the reasons are above): "
            "copy the folder from a backup, or train into another --workdir"
        )

    def _read_whole(self, steps: Iterable[int], trees: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict, int]]:
        """(trees, meta, step) of each step that is whole; the others are recorded and reported on stderr."""
        for step in steps:
            try:
                yield *step_io.read_step(self._open_manager(), self.folder, step, trees), step
            except CorruptCheckpoint as reason:
                self._raise_if_deleted(step)
                self._corrupt_steps.add(step)
                if jax.process_index() == 0:
                    place = self.folder / str(step)
                    print(f"jaxlm: checkpoint {place} is damaged and skipped: {reason}", file=sys.stderr)

    def _raise_if_deleted(self, step: int) -> None:
        """Raise DeletedCheckpoint if the run, which is being trained, deletes this step; it keeps the newest one."""
        for _ in range(20 if self.read_only else 0):
            if step not in (steps := self.steps()):
                raise step_io.DeletedCheckpoint(f"{self.folder / str(step)} was deleted while it was read")
            if step == steps[-1]:
                return
            time.sleep(0.05)

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        """Turn an error of a save, in the call or in the background, into a UserError, and discard the manager."""
        try:
            yield
        except Exception as error:
            if isinstance(error, UserError):
                raise
            step, self._current_step = self._current_step, None
            self._manager = None  # not closed: its threads may wait for one another for minutes
            fault = f"{self.folder} cannot be opened" if step is None else f"step {step} was not saved in {self.folder}"
            raise SaveError(
                f"{fault}: {step_io.error_summary(error)}: check the disk (space, quota, permissions) and run the "
                "command again; it resumes from the newest whole step"
            ) from error

    def _open_manager(self) -> Any:
        """Orbax's manager of the folder, opened on first use."""
        if self._manager is None:
            if self.read_only and not self.folder.is_dir():
                raise UserError(f"{self.folder} does not exist: expected the checkpoints of a run; check the path")
            ocp = step_io.import_orbax()
            if self.read_only:
                options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
            else:
                metrics = self._metrics if self.keep_best is not None else {}
                policy = _PreservationPolicy(self.keep, metrics, self.interim_steps)
                # Folders are made in the call: one that cannot be made is an error at once, not after minutes.
                in_call = ocp.AsyncOptions(create_directories_asynchronously=False, barrier_sync_fn=self._barrier)
                options = ocp.CheckpointManagerOptions(
                    cleanup_tmp_directories=True, preservation_policy=policy, async_options=in_call
                )
            self._manager = ocp.CheckpointManager(self.folder.absolute(), options=options)
        return self._manager

    def _read_metrics(self, steps: Sequence[int]) -> dict[int, float | None]:
        """The metric of each step, or None; read from disk once."""
        for step in steps:
            if step not in self._metrics:
                self._metrics[step] = None
                try:
                    metric = step_io.read_metadata(self._open_manager(), self.folder, step)["metric"]
                    self._metrics[step] = _metric_value(metric, self.keep_best)
                except CorruptCheckpoint:
                    self._raise_if_deleted(step)
        return {step: self._metrics[step] for step in steps}

    def _quarantine(self) -> None:
        """Rename damaged steps (200 to 200.damaged), since the run will save their numbers again."""
        if not self._corrupt_steps:
            return
        if jax.process_index() == 0:
            for step in self._corrupt_steps:
                renamed = self.folder / f"{step}.damaged"
                shutil.rmtree(renamed, ignore_errors=True)
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self.folder / str(step), renamed)
        # A barrier: no host may list or write steps before the first host has renamed them.
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("jaxlm: damaged checkpoints set aside")
        for step in self._corrupt_steps:
            self._metrics.pop(step, None)
        self._corrupt_steps.clear()
        self._open_manager().reload()


class _PreservationPolicy:
    """Orbax's preservation policy: the last `keep` steps, and the best one if metrics are known; of interim steps the
    newest step alone."""

    def __init__(self, keep: int | None, metrics: Mapping[int, float | None], interim_steps: set[int]):
        self.keep, self.metrics, self.interim_steps = keep, metrics, interim_steps

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each checkpoint, oldest first: True if it is kept."""
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        regular = [step for step in steps if step not in self.interim_steps]
        kept = {*steps[-1:], *(regular if self.keep is None else regular[-self.keep :])}
        kept.add(_step_of_best({step: self.metrics.get(step) for step in regular}))
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _metric_value(metric: dict | None, name: str | None) -> float | None:
    """The value of a stored metric; None if it is another metric or NaN."""
    if metric is None or name not in (None, metric["name"]) or math.isnan(metric["value"]):
        return None
    return metric["value"]


def _step_of_best(metrics: dict[int, float | None]) -> int | None:
    values = {step: value for step, value in sorted(metrics.items()) if value is not None}
    return max(values, key=values.__getitem__) if values else None


def _split_params(state: Any) -> dict[str, Any]:
    """The items of a checkpoint: the parameters, and the state without them."""
    if isinstance(state, Mapping):
        return {"params": state["params"], "rest": {key: state[key] for key in state if key != "params"}}
    return {"params": state.params, "rest": state.replace(params=None)}
