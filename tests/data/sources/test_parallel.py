"""Sources of pairs: every format, every fault of each, and the wrappers' laws."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxlm.data.files import ReadStats
from jaxlm.data.sources.base import Pair, iter_pairs
from jaxlm.data.sources.parallel import JsonLines, ParallelFiles, Tsv
from jaxlm.data.sources.transforms import (
    Concat,
    HashSplit,
    Lowercase,
    MosesPreprocess,
    RelabelTags,
    Shuffle,
    Take,
    moses_preprocess,
)
from jaxlm.errors import UserError


@dataclass(frozen=True)
class Given:
    """Pairs from memory, without counts of bad lines, like the sources of users."""

    pairs: tuple[Pair, ...]

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def describe(self) -> str:
        return "given"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLM_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counts(source) -> tuple[list[Pair], ReadStats]:
    bad = ReadStats()
    return list(iter_pairs(source, bad)), bad


def parallel(folder: Path, source: bytes, target: bytes, **options) -> ParallelFiles:
    (folder / "a.en").write_bytes(source)
    (folder / "a.de").write_bytes(target)
    return ParallelFiles("a.en", "a.de", **options)


def test_parallel_files_keep_step_and_direction(folder):
    pairs = parallel(folder, b"\xef\xbb\xbfone\r\ntwo\r\n", b"eins\nzwei")
    assert list(pairs) == list(pairs) == [("one", "eins"), ("two", "zwei")]
    assert list(ParallelFiles("a.de", "a.en")) == [("eins", "one"), ("zwei", "two")]
    assert pairs.describe() == "a.en -> a.de"
    assert pairs.check() == ReadStats(kept=2)


def test_long_lines_are_legal(folder):
    pairs = parallel(folder, b"x" * 10_000 + b"\n", b"y" * 10_000 + b"\n")
    assert list(pairs) == [("x" * 10_000, "y" * 10_000)]


@pytest.mark.parametrize(
    ("source", "target", "numbers"),
    [
        (b"a\nb\nc\n", b"a\n", ("3", "1")),
        (b"a\n", b"a\nb\nc\nd\n", ("1", "4")),
        (b"a\n" * 1200, b"a\n", ("1,200", "1")),
    ],
)
def test_unequal_files_name_both_numbers(folder, source, target, numbers):
    with pytest.raises(UserError, match=rf"a\.en has {numbers[0]} lines and .*a\.de has {numbers[1]}:"):
        parallel(folder, source, target).check()


def test_a_side_that_is_missing_or_empty(folder):
    pairs = parallel(folder, b"a\n", b"")
    with pytest.raises(UserError, match=r"a\.de is empty"):
        list(pairs)
    (folder / "a.de").unlink()
    with pytest.raises(UserError, match=r"a\.de was not found"):
        list(pairs)


def test_a_bad_line_takes_its_whole_pair(folder):
    source, target = b"1\n2\n\xff\n4\n\xff\n", b"eins\n\xff\ndrei\nvier\n\xff\n"
    assert counts(parallel(folder, source, target, on_bad_line="skip")) == (
        [("1", "eins"), ("4", "vier")],
        ReadStats(kept=2, skipped=3),
    )
    rows, bad = counts(parallel(folder, source, target, on_bad_line="replace"))
    assert rows[1] == ("2", "\ufffd") and bad == ReadStats(kept=5, replaced=4)
    with pytest.raises(UserError, match=r"a\.de, line 2, byte 5 "):
        list(parallel(folder, source, target))


def test_blank_sides_are_dropped_and_counted_or_kept(folder):
    source, target = "a\n\n \t\u00a0\nd\n".encode(), b"A\nB\nC\n  \n"
    assert counts(parallel(folder, source, target)) == ([("a", "A")], ReadStats(kept=1, blank=3))
    rows, bad = counts(parallel(folder, source, target, keep_blank=True))
    assert len(rows) == 4 and bad == ReadStats(kept=4)


def test_no_pair_left_is_an_error(folder):
    with pytest.raises(UserError, match="no pair is left.*2 blank"):
        list(parallel(folder, b"\n\n", b"a\nb\n"))


def test_tsv(folder):
    (folder / "x.tsv").write_text("Go.\tVe.\tCC\nGo.\tVete.\n", newline="\r\n")
    assert list(Tsv("x.tsv", source=0, target=1)) == [("Go.", "Ve."), ("Go.", "Vete.")]
    assert list(Tsv("x.tsv", source=1, target=0)) == [("Ve.", "Go."), ("Vete.", "Go.")]
    assert Tsv("x.tsv", source=1, target=0).describe() == "x.tsv, column 1 -> column 0"
    for source, target in ((0, 0), (-1, 1)):
        with pytest.raises(UserError, match="two different numbers"):
            Tsv("x.tsv", source, target)
    (folder / "x.tsv").write_text("en\tde\ten\na\tA\tb\n")
    with pytest.raises(UserError, match="lacks the column 'en', or has it twice: it names 'en', 'de', 'en'"):
        list(Tsv("x.tsv", "en", "de"))


def test_tsv_with_too_few_columns(folder):
    (folder / "x.tsv").write_text("a\tA\nb\n\nc\tC\n")
    with pytest.raises(UserError, match=r"x\.tsv, line 2: 1 columns, expected at least 2"):
        list(Tsv("x.tsv", 0, 1))
    for way in ("skip", "replace"):
        assert counts(Tsv("x.tsv", 0, 1, on_bad_line=way)) == (
            [("a", "A"), ("c", "C")],
            ReadStats(kept=2, skipped=1, blank=1),
        )
    with pytest.raises(UserError, match="no pair is left"):
        list(Tsv("x.tsv", 0, 7, on_bad_line="skip"))


def test_json_lines(folder):
    rows = [{"en": "a\u2028b\n", "de": "\U0001f642"}, {"translation": {"en": "c", "de": "d"}, "id": 3}]
    (folder / "x.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows[:1]) + "\n")
    assert list(JsonLines("x.jsonl", source="en", target="de")) == [("a\u2028b\n", "\U0001f642")]
    (folder / "y.jsonl").write_text(json.dumps(rows[1]))
    assert list(JsonLines("y.jsonl", "translation.de", "translation.en")) == [("d", "c")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"en": "a", "de"', "line 2: .*line 1 column"),
        ("[1, 2]", "line 2: expected a JSON object, found list"),
        ("[" * 100_000, "line 2: too many levels of JSON"),
        ('{"en": ' + "9" * 5000 + "}", "line 2: .*Fix the line"),
        ('{"en": "a"}', "line 2: expected a text under 'de', found only 'en'"),
        ('{"en": "a", "de": "A", "en": "b"}', "line 2: the name 'en' is in an object twice"),
        ("{}", "line 2: expected a text under 'en', found no key|found only no key"),
        ('{"en": "a", "de": 3.5}', "line 2: expected a text under 'de', found float"),
        ('{"en": "a", "de": null}', "line 2: expected a text under 'de', found NoneType"),
        ('{"en": "a", "de": "\\ud83d"}', "line 2: the text under 'de' holds half of a surrogate pair"),
    ],
)
def test_bad_json_lines(folder, line, message):
    (folder / "x.jsonl").write_text('{"en": "a", "de": "A"}\n' + line + "\n\n" + '{"en": "c", "de": "C"}\n')
    with pytest.raises(UserError, match=message):
        list(JsonLines("x.jsonl", "en", "de"))
    rows, bad = counts(JsonLines("x.jsonl", "en", "de", on_bad_line="skip"))
    assert rows == [("a", "A"), ("c", "C")] and bad == ReadStats(kept=2, skipped=1, blank=1)


def test_half_a_surrogate_pair_can_be_replaced(folder):
    (folder / "x.jsonl").write_text('{"en": "a\\ud83d", "de": "\\ud83d\\ude42"}\n')
    rows, bad = counts(JsonLines("x.jsonl", "en", "de", on_bad_line="replace"))
    assert rows == [("a\ufffd", "\U0001f642")] and bad == ReadStats(kept=1, replaced=1)


MANY = Given(tuple((f"sentence {number // 3}", f"satz {number}") for number in range(6000)))


def test_split_by_source_is_a_partition_without_shared_sources():
    parts = {part: list(HashSplit(MANY, part, valid=0.1, test=0.2)) for part in ("train", "valid", "test")}
    assert sorted(sum(parts.values(), [])) == sorted(MANY)
    sources = {part: {source for source, _ in rows} for part, rows in parts.items()}
    assert not sources["train"] & sources["valid"] | sources["train"] & sources["test"]
    assert not sources["valid"] & sources["test"]
    assert 0.07 < len(parts["valid"]) / 6000 < 0.13 and 0.16 < len(parts["test"]) / 6000 < 0.24
    for part, rows in parts.items():
        assert list(HashSplit(Shuffle(MANY, 5), part, valid=0.1, test=0.2, seed=1)) != rows
        assert sorted(HashSplit(Shuffle(MANY, 5), part, valid=0.1, test=0.2)) == sorted(rows)


def test_split_by_target_for_the_other_direction():
    turned = Given(tuple((target, source) for source, target in MANY))
    straight = [pair for pair in HashSplit(MANY, "test", test=0.1)]
    assert [(b, a) for a, b in HashSplit(turned, "test", test=0.1, hash_side="target")] == straight


def test_split_does_not_move_between_versions():
    """The parts are part of a published score: these sentences were drawn once and stay."""
    few = Given(tuple((f"sentence {number}", "x") for number in range(12)))
    test = [source for source, _ in HashSplit(few, "test", test=0.3)]
    assert test == ["sentence 9", "sentence 11"]


def test_split_that_cannot_be():
    with pytest.raises(UserError, match="shares"):
        HashSplit(MANY, "test", valid=0.6, test=0.5)
    with pytest.raises(UserError, match="'dev'"):
        HashSplit(MANY, "dev")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no pair falls into this part"):
        list(HashSplit(Given((("a", "b"),)), "test", test=1e-9))


def test_shuffled_and_take():
    once = list(Shuffle(MANY, 1))
    assert once == list(Shuffle(MANY, 1)) != list(Shuffle(MANY, 2))
    assert sorted(once) == sorted(MANY) and once != list(MANY)
    assert list(Take(Shuffle(MANY, 1), 10)) == once[:10]
    assert list(Take(MANY, 10**6)) == list(MANY)
    assert Take(Shuffle(MANY, 1), 10).describe() == "given; shuffled by seed 1; first 10"


def test_together_and_renamed(folder):
    """One source after the other, as often as given; words of the target renamed at every position."""
    few = parallel(folder, b"a\nb\n", b"B-PER O\nO I-PER\n")
    renamed = RelabelTags(few, {"B-PER": "B-person", "I-PER": "I-person"})
    assert list(renamed) == [("a", "B-person O"), ("b", "O I-person")]
    both = Concat((few, few, renamed))
    assert list(both) == [*few, *few, *renamed] and both.check().kept == 6
    assert both.describe().count(" and ") == 2 and "B-PER as B-person" in both.describe()
    with pytest.raises(UserError, match="without a source"):
        Concat(())


def test_take_checks_what_it_does_not_deliver(folder):
    pairs = Take(parallel(folder, b"a\nb\nc\n", b"A\nB\n"), 1)
    assert list(pairs) == [("a", "A")]
    with pytest.raises(UserError, match="has 3 lines"):
        pairs.check()


def test_wrappers_pass_the_counts_on(folder):
    pairs = parallel(folder, b"A\n\nC\n\xff\n", b"X\nY\nZ\nW\n", on_bad_line="skip")
    assert counts(Lowercase(pairs)) == ([("a", "x"), ("c", "z")], ReadStats(kept=2, skipped=1, blank=1))


def test_moses():
    pytest.importorskip("sacremoses")
    lines = ['Ein Boot namens "El Corazón".', "Leute  gehen (langsam) z. B. heim."]
    assert moses_preprocess(lines, "de") == [
        "ein boot namens &quot; el corazón &quot; .",
        "leute gehen ( langsam ) z. b. heim .",
    ]
    assert moses_preprocess(['It\'s "here"'], "en", lowercase=False) == ["It &apos;s &quot; here &quot;"]
    pairs = MosesPreprocess(Given((("It's HERE.", "Er ist DA."),)), "en", "de")
    assert list(pairs) == [("it &apos;s here .", "er ist da .")]
    assert list(MosesPreprocess(pairs.pairs, "en", "de", lowercase=False)) == [("It &apos;s HERE .", "Er ist DA .")]
    assert "Moses" in pairs.describe() and "en -> de" in pairs.describe()


@pytest.mark.data
def test_multi30k_and_anki():
    root = Path(os.environ.get("JAXLM_DATA", "../shared/data"))
    if not (root / "multi30k_eng_deu").is_dir():
        pytest.skip("Multi30k is not there: set JAXLM_DATA to the folder of the data sets")
    multi30k = ParallelFiles("multi30k_eng_deu/train.en.gz", "multi30k_eng_deu/train.de.gz")
    assert multi30k.check() == ReadStats(kept=29_000)
    pytest.importorskip("sacremoses")
    test = ParallelFiles("multi30k_eng_deu/test_2016_flickr.en.gz", "multi30k_eng_deu/test_2016_flickr.de.gz")
    targets = [target for _, target in MosesPreprocess(test, "en", "de")]
    assert targets[0] == "ein mann mit einem orangefarbenen hut , der etwas anstarrt ."
    assert (
        "eine frau auf einem boot namens &quot; el corazon &quot; lässt schwarze gewichte ins wasser fallen ."
        in targets
    )
