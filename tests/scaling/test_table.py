"""Tables of runs: formats, and every kind of bad row, each with a message that names the place and the cure."""

import gzip
import json

import numpy as np
import pytest
from fixtures.cli_runs import command  # noqa: F401

from jaxlm.errors import UserError
from jaxlm.scaling.fit import check_runs, read_law
from jaxlm.scaling.table import make_runs, read_runs

COLUMNS = {"N": "n", "D": "d", "L": "loss"}
ROWS = [(n, d, round(2 + n**-0.3 * 50 + d**-0.3 * 90, 6)) for n in (1e6, 3e6, 1e7) for d in (1e8, 3e8, 1e9)]


def csv_text(rows=ROWS, header="n,d,loss", delimiter=","):
    lines = [header.replace(",", delimiter), *(delimiter.join(map(str, row)) for row in rows)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


def test_formats(write):
    records = "".join(json.dumps(dict(zip(COLUMNS.values(), row, strict=True))) + "\n" for row in ROWS)
    texts = {
        "a.csv": csv_text(),
        "b.tsv": csv_text(delimiter="\t"),
        "c.csv.gz": csv_text(delimiter=";"),
        "d.jsonl": records,
    }
    for name, text in texts.items():
        runs = read_runs(write(text, name), COLUMNS)
        np.testing.assert_allclose(np.stack([runs.params, runs.tokens, runs.loss], 1), ROWS)
        np.testing.assert_allclose(runs.flops, 6 * runs.params * runs.tokens)


def test_bits_become_nats(write):
    rows = [(n, d, loss / np.log(2), "bits") for n, d, loss in ROWS[:4]] + [(*row, "nats") for row in ROWS[4:]]
    runs = read_runs(write(csv_text(rows, "n,d,loss,unit")), COLUMNS)
    np.testing.assert_allclose(runs.loss, [row[2] for row in ROWS])


def test_conditions_and_clusters_compare_numbers(write):
    rows = [(*row, "4" if i % 2 else "4.0", i) for i, row in enumerate(ROWS)]
    path = write(csv_text(rows, "n,d,loss,batch,i"))
    runs = read_runs(path, COLUMNS | {"cluster": "batch"}, ["batch=4"])
    assert len(runs) == 9 and set(runs.cluster) == {0}
    assert len(read_runs(path, COLUMNS, ["i=1|2.0"])) == 2


BAD = {
    "missing columns": (csv_text(header="n,tokens,loss"), "has no column d: it has n, tokens, loss"),
    "unit": (
        csv_text([(*row, "bpb") for row in ROWS], "n,d,loss,unit"),
        "line 2, column unit: found 'bpb', expected nats",
    ),
    "zero": (csv_text([*ROWS, (0, 1e8, 3.0)]), "line 11, column n: found '0', expected a number above 0"),
    "negative": (csv_text([*ROWS, (1e6, -5, 3.0)]), "line 11, column d: found '-5'"),
    "nan": (csv_text([*ROWS, (1e6, 1e8, "nan")]), "line 11, column loss: found 'nan'"),
    "blank": (csv_text([*ROWS, (1e6, 1e8, "")]), "line 11, column loss: found ''"),
    "thousands": (
        csv_text([*ROWS, ('"1,000,000"', 1e8, 3.0)]),
        "found '1,000,000', expected a number above 0 without thousands",
    ),
    "underscores": (csv_text([*ROWS, ("1_000", 1e8, 3.0)]), "found '1_000'"),
    "unquoted thousands": (csv_text([*ROWS, ("1,000", 1e8, 3.0)]), "line 11: 4 columns, expected 3 as in the header"),
    "duplicate": (csv_text([*ROWS, ("1000000", "1.0e8", ROWS[0][2])]), "line 11: N, D and loss are those of"),
    "column twice": (csv_text(header="n,d,loss,n"), "line 1: 4 columns, some with the same name"),
    "data sets": (
        csv_text([(*row, i % 2) for i, row in enumerate(ROWS)], "n,d,loss,dataset"),
        "mixes 0, 1: choose one with",
    ),
    "a cell beyond csv's limit": (csv_text([*ROWS, ("1" * 200_000, 1e8, 3.0)]), "t.csv, line 11"),
    "no rows": ("n,d,loss\n", "one row for each run, found none"),
    "not JSON": ('{"n": 1,\n', "line 1, line 1, column 9: not JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_refused(case, write):
    text, message = BAD[case]
    with pytest.raises(UserError, match=".") as refused:
        read_runs(write(text), COLUMNS)
    assert message in str(refused.value)


def test_a_condition_that_no_row_meets_lists_the_values(write):
    with pytest.raises(UserError, match="has no such row: it has a, b"):
        read_runs(
            write(csv_text([(*row, "ab"[i % 2]) for i, row in enumerate(ROWS)], "n,d,loss,dataset")),
            COLUMNS,
            ["dataset=c"],
        )


def test_runs_that_do_not_determine_the_law():
    sizes, tokens = np.geomspace(1e6, 1e8, 9), np.geomspace(1e8, 1e10, 9)
    for runs, message in (
        (make_runs(sizes[:7], tokens[6::-1], np.ones(7)), "7 runs, expected 8 or more for the law chinchilla"),
        (
            make_runs(np.repeat(sizes[:2], 5), np.tile(tokens[:5], 2), np.ones(10)),
            "2 values of N, expected 3 or more: the exponent of N",
        ),
        (
            make_runs(np.tile(sizes[:5], 2), np.repeat(tokens[:2], 5), np.ones(10)),
            "2 values of D, expected 3 or more: the exponent of D",
        ),
        (make_runs(sizes, 20 * sizes, np.ones(9)), r"N and D are proportional in all runs \(condition number"),
    ):
        with pytest.raises(UserError, match=message):
            check_runs("chinchilla", runs)
    check_runs("overtrained", make_runs(sizes[:5], tokens[[2, 0, 1, 4, 3]], np.ones(5)))


def test_fit_writes_the_law_that_plan_reads(command, write, tmp_path):  # noqa: F811
    table, law = write(csv_text()), tmp_path / "law.json"
    words = ["scale", "fit", table, "--N", "n", "--D", "d", "--L", "loss", "--bootstrap", "3", "--out", law]
    found = command(*words)
    assert found.code == 0, found.err
    assert "chinchilla: 9 runs" in found.out.decode() and len(read_law(law)["samples"]) == 3
    assert command("scale", "fit", table, "--N", "n").code == 2 and command("scale", "refit").code == 2
    law.write_text(law.read_text().replace("chinchilla", "kaplan"))
    with pytest.raises(UserError, match="and all of its parameters"):
        read_law(law)
