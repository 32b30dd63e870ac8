"""Laws of the config: exact round trips, refusals that name the place, differences that name both values."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.display import differences, format_config
from jaxlm.config.serialization import from_json, to_json
from jaxlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Schedule:
    peak: float = 1e-3
    warmup: int = 100


@dataclasses.dataclass(frozen=True)
class Run:
    model: Any
    schedule: Schedule | None = None
    stages: tuple[Any, ...] = ()
    table: Any = None
    folder: Path | None = None
    label: str = "run"
    dtype: Any = "bfloat16"


@dataclasses.dataclass(frozen=True)
class Named:
    value: Any
    items: int = 0


@dataclasses.dataclass(frozen=True)
class Clash:
    type: str = "x"


class Cell(nn.Module):
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(x)


class Stack(nn.Module):
    cell: nn.Module
    layers: int = 2
    widths: tuple[int, ...] = (1, 2)
    extra: Any = None

    def __call__(self, x):
        return self.cell(x)


def round_trip(value):
    return from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))


RUNS = [
    Run(Stack(Cell(4))),
    Run(Stack(Cell(4, jnp.bfloat16), extra={"a": (1,)}), Schedule(2.5, 7), (Schedule(), (1, (), (2.0, None)), "x")),
    Run(None, table={"a": 1, "type": "not a type", "nested": {"b": (1, 2)}}, folder=Path("data/x")),
    Run(None, table={1: "one", (2, 3): "pair"}, dtype=np.float32),
    Run(Named((1, Named(2)))),
    Run(None, table={"type": "jax.numpy.zeros"}, dtype=np.dtype("bfloat16")),
    Run(None, Schedule(float("inf"), -3), (float("-inf"), 0.1, 1.0, 1, True, False), dtype=jnp.int32),
]


@pytest.mark.parametrize("run", RUNS)
def test_round_trip_is_exact(run):
    again = round_trip(run)
    assert again == run
    assert to_json(again) == to_json(run)
    assert format_config(again) == format_config(run)
    assert differences(run, again) == []


def test_dtypes_keep_their_kind():
    for dtype in (jnp.bfloat16, jnp.float32, np.float32, np.int8, np.dtype("int32"), "bfloat16"):
        assert round_trip(Run(None, dtype=dtype)).dtype is dtype or round_trip(Run(None, dtype=dtype)).dtype == dtype
        assert type(round_trip(Run(None, dtype=dtype)).dtype) is type(dtype)


def test_nan_and_numpy_numbers():
    assert np.isnan(round_trip(Schedule(float("nan"))).peak)
    assert round_trip(Schedule(np.float32(0.5), np.int64(3))) == Schedule(0.5, 3)


def test_linen_module_keeps_no_trace_of_its_place():
    data = to_json(Stack(Cell(4), name="somewhere"))
    assert set(data) == {"type", "cell", "layers", "widths", "extra"}
    assert set(data["cell"]) == {"type", "features", "dtype"}
    rebuilt = from_json(data)
    assert hash(rebuilt) == hash(Stack(Cell(4)))
    rebuilt.init(__import__("jax").random.key(0), jnp.ones((1, 3)))


def test_missing_fields_take_defaults_and_unknown_ones_are_named():
    data = to_json(Run(None, Schedule()))
    del data["schedule"]["warmup"], data["label"]
    assert from_json(data) == Run(None, Schedule())
    data["schedule"]["warmpu"] = 3
    with pytest.raises(UserError, match=r"config.schedule: .*Schedule has no field warmpu \(it has peak, warmup\)"):
        from_json(data)
    with pytest.raises(UserError, match="cannot be built.*model"):
        from_json({"type": to_json(RUNS[0])["type"]})


@pytest.mark.parametrize(
    "name",
    ["os.system", "subprocess.run", "builtins.eval", "pathlib.PurePath", "jax.numpy.zeros", "numpy.save", "json.dumps"],
)
def test_only_dataclasses_are_built(name):
    with pytest.raises(UserError, match="not a dataclass|not a dtype"):
        from_json({"type": name, "value": "x"} if "numpy" not in name else {"type": name})


@pytest.mark.parametrize("name", ["no_such_package.Thing", "jaxlm.no_such_module.Thing", "Thing", "", "..x"])
def test_unknown_types_are_named(name):
    with pytest.raises(UserError, match="cannot be imported|not a dataclass|not a class of jaxlm"):
        from_json({"type": name})


def test_what_a_config_cannot_hold_is_named_with_its_place():
    @dataclasses.dataclass(frozen=True)
    class Local:
        x: int = 1

    for value, message in [
        (len, "table is a builtin"),
        ([1], "table is a list"),
        ({1}, "table is a set"),
        (np.ones(2), "table is a ndarray"),
        (nn.relu, "cannot hold"),
        (Schedule, "table is a type"),
        (Local(), "inside a function"),
        (Clash(), "has a field `type`"),
        (("a", {"b": len}), r"config.table\[1\].b"),
    ]:
        with pytest.raises(UserError, match=message):
            to_json(Run(None, table=value))


def test_differences_name_the_field_and_both_values():
    here = Run(Stack(Cell(4), layers=4), Schedule(), (Schedule(1.0), 2))
    there = Run(Stack(Cell(8), layers=6), None, (Schedule(2.0), 2), folder=Path("d"))
    lines = differences(here, to_json(there), "D/experiment.json")
    assert "model.layers: 4 here, 6 in D/experiment.json" in lines
    assert "model.cell.features: 4 here, 8 in D/experiment.json" in lines
    assert "stages[0].peak: 1.0 here, 2.0 in D/experiment.json" in lines
    assert "folder: None here, Path('d') in D/experiment.json" in lines
    assert any(line.startswith("schedule: ") and line.endswith("None in D/experiment.json") for line in lines)
    assert len(lines) == 5
    assert differences(Run(None), Run(Cell(1)))[0].endswith("Cell(features=1, dtype=jax.numpy.float32) there")
    shorter = to_json(Schedule())
    del shorter["warmup"]
    assert differences(Schedule(), shorter) == ["warmup: 100 here, absent there"]
    assert differences(Run(None, label="1"), Run(None, label=1)) == ["label: '1' here, 1 there"]
    assert differences(Schedule(1, 2), Schedule(1.0, 2)) == []
    assert differences(Named((1,)), Named((2,))) == ["value[0]: 1 here, 2 there"]


def test_pretty_is_a_field_a_line():
    text = format_config(Run(Stack(Cell(4)), None, (Schedule(), 3), {"a": 1, "b": (1,)}, Path("d")))
    here = __name__
    assert text.splitlines() == [
        f"{here}.Run",
        f"  model: {here}.Stack",
        f"    cell: {here}.Cell",
        "      features: 4",
        "      dtype: jax.numpy.float32",
        "    layers: 2",
        "    widths: (1, 2)",
        "    extra: None",
        "  schedule: None",
        "  stages:",
        f"    [0]: {here}.Schedule",
        "      peak: 0.001",
        "      warmup: 100",
        "    [1]: 3",
        "  table:",
        "    a: 1",
        "    b: (1,)",
        "  folder: Path('d')",
        "  label: 'run'",
        "  dtype: 'bfloat16'",
    ]


SCRIPT = """
import dataclasses, json, sys
from jaxlm.config.serialization import to_json
assert "jax" not in sys.modules and "flax" not in sys.modules
@dataclasses.dataclass(frozen=True)
class Mine:
    x: int = 1
print(json.dumps(to_json(Mine())))
"""


def test_classes_of_the_running_program(tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT)
    root = str(Path(__file__).parents[1])
    run = {"capture_output": True, "text": True, "cwd": tmp_path, "env": {"PYTHONPATH": root}}
    as_module = subprocess.run([sys.executable, "-m", "mine"], **run)
    assert json.loads(as_module.stdout) == {"type": "mine.Mine", "x": 1}
    as_script = subprocess.run([sys.executable, "mine.py"], **run)
    assert as_script.returncode != 0 and "python -m" in as_script.stderr
