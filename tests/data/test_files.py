"""Reading lines: what ends a line, what is kept, and how every broken file is named."""

import bz2
import gzip
import io
import lzma
import subprocess
import sys
import zipfile

import pytest

from jaxlm.data import files
from jaxlm.data.files import ReadStats, find_file, read_lines, text_name
from jaxlm.errors import UserError


def write(folder, content: bytes, name="x.txt"):
    file = folder / name
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return file


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\r\n\r\nb", ["a", "", "b"]),
        (b"\n", [""]),
        (b"a\rb\n", ["a\rb"]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        (b"a\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        ("a\u2028b\u0085c\x0bd\x0ce\x1cf\n".encode(), ["a\u2028b\u0085c\x0bd\x0ce\x1cf"]),
        ("nul \0 and \U0001f642\n".encode(), ["nul \0 and \U0001f642"]),
        (b"  two  spaces \t\n", ["  two  spaces \t"]),
        (b"x" * 10_000 + b"\n" + b"y" * 10_000, ["x" * 10_000, "y" * 10_000]),
    ],
)
def test_only_lf_and_crlf_end_a_line(tmp_path, name, content, lines):
    assert list(read_lines(write(tmp_path, content, name))) == lines


def test_a_gzip_without_the_suffix_is_unpacked(tmp_path):
    assert list(read_lines(write(tmp_path, gzip.compress(b"a\n"), "x.txt"))) == ["a"]


def test_bad_utf8_names_file_line_and_byte(tmp_path):
    file = write(tmp_path, b"caf\xc3\xa9\nna\xefve\n")
    with pytest.raises(UserError, match=r"x\.txt, line 2, byte 8 .*not UTF-8.*replace"):
        list(read_lines(file))


@pytest.mark.parametrize("text, cure", [(b"\x7fELF\0\xef\n", "not a text file"), (b"na\xefve\n", "iconv")])
def test_bad_utf8_of_a_binary_file_is_not_to_be_converted(tmp_path, text, cure):
    with pytest.raises(UserError, match=cure):
        list(read_lines(write(tmp_path, text, "x.txt")))


def test_bad_utf8_after_a_byte_order_mark_has_its_offset_in_the_file(tmp_path):
    file = write(tmp_path, b"\xef\xbb\xbfab\xff\n")
    with pytest.raises(UserError, match="line 1, byte 5 "):
        list(read_lines(file))


def test_utf16_is_recognised(tmp_path):
    with pytest.raises(UserError, match="looks like UTF-16"):
        list(read_lines(write(tmp_path, "hello\n".encode("utf-16"))))


def test_bad_utf8_can_be_replaced_or_skipped_and_is_counted(tmp_path):
    file = write(tmp_path, b"one\nna\xefve \xff\nthree\n")
    bad = ReadStats()
    assert list(read_lines(file, "replace", bad)) == ["one", "na\ufffdve \ufffd", "three"]
    assert bad == ReadStats(kept=3, replaced=1)
    bad = ReadStats()
    assert list(read_lines(file, "skip", bad)) == ["one", "three"]
    assert bad == ReadStats(kept=2, skipped=1)
    assert "2 kept" in str(bad) and "1 unreadable" in str(bad)


def test_an_unknown_way_with_bad_lines_is_refused(tmp_path):
    with pytest.raises(UserError, match="'ignore'.*error, replace, skip"):
        list(read_lines(write(tmp_path, b"a\n"), "ignore"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(tmp_path, name, content):
    with pytest.raises(UserError, match="is empty"):
        list(read_lines(write(tmp_path, content, name)))


def test_broken_gzip_is_named(tmp_path):
    whole = gzip.compress(b"".join(b"line %d\n" % number for number in range(10_000)))
    truncated = tmp_path / "cut.gz"
    truncated.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.gz: damaged gzip"):
        list(read_lines(truncated))
    flipped = tmp_path / "flipped.gz"
    flipped.write_bytes(whole[:500] + bytes(byte ^ 255 for byte in whole[500:600]) + whole[600:])
    with pytest.raises(UserError, match=r"flipped\.gz: damaged gzip"):
        list(read_lines(flipped))
    plain = tmp_path / "plain.gz"
    plain.write_bytes(b"not gzip\n")
    with pytest.raises(UserError, match="is not gzip"):
        list(read_lines(plain))


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(UserError, match="was not found"):
        list(read_lines(tmp_path))


def zipped(*names: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, "one\ntwo\n")
    return packed.getvalue()


PACKED = {"bz2": bz2.compress(b"one\ntwo\n"), "xz": lzma.compress(b"one\ntwo\n"), "zip": zipped("a.txt")}


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_files_are_read_whatever_their_name(ending, tmp_path):
    file = write(tmp_path, PACKED[ending], f"a.{ending}")
    assert list(read_lines(file)) == list(read_lines(write(tmp_path, PACKED[ending], "a"))) == ["one", "two"]
    assert text_name(file) == {"zip": "a.txt"}.get(ending, "a")
    with pytest.raises(UserError, match=r"(?s)damaged|cannot be read"):
        list(read_lines(write(tmp_path, PACKED[ending][:-20], f"a.{ending}")))
    with pytest.raises(UserError, match=f"ends in .{ending} but is not"):
        list(read_lines(write(tmp_path, b"one\n", f"a.{ending}")))


OTHER = [
    (b"\x28\xb5\x2f\xfd\x04\x88abc", "Zstandard|damaged"),
    (b"PAR1\x15\x04\x15\xb0", "a Parquet table, expected text.*ArrowTable"),
    (b"7z\xbc\xaf\x27\x1c\0", "a 7-Zip archive.*7z x"),
    (b"a.txt" + bytes(252) + b"ustar" + bytes(250), "a tar archive.*tar xf"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS.*git lfs pull"),
    (gzip.compress(b"a.txt" + bytes(252) + b"ustar" + bytes(250), mtime=0), "a tar archive"),
    (zipped("a", "b"), r"a zip of 2 files \(a, b\), expected one: unpack it"),
    (zipped(), "a zip of 0 files"),
]


@pytest.mark.parametrize(("content", "name"), OTHER)
def test_other_files_are_called_what_they_are(content, name, tmp_path):
    with pytest.raises(UserError, match=name):
        list(read_lines(write(tmp_path, content)))


def test_a_line_has_a_limit(tmp_path):
    file = write(tmp_path, b"12345\r\n12345\n1234\n12345")
    assert list(read_lines(file, max_bytes=5)) == ["12345", "12345", "1234", "12345"]
    with pytest.raises(UserError, match=r"line 1: the line has more than 4 bytes, the limit.*max_text_bytes"):
        list(read_lines(file, max_bytes=4))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_is_refused(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "UNPACKED_BYTES", 1 << 20)
    file = write(tmp_path, pack(b"\n" * (8 << 20)))
    with pytest.raises(UserError, match=r"gives more than [\d,]+ bytes.*Unpack it first if it is one"):
        list(read_lines(file))


def test_find_looks_in_order(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / "data", elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.chdir(project)
    monkeypatch.delenv("JAXLM_DATA", raising=False)
    write(project, b"here\n", "a.en.gz")
    assert list(read_lines("a.en.gz")) == ["here"]
    write(project / "data", b"data\n", "a.en")
    assert list(read_lines("a.en.gz")) == ["data"]
    assert list(read_lines("a.en")) == ["data"]
    monkeypatch.setenv("JAXLM_DATA", str(elsewhere))
    assert list(read_lines("a.en")) == ["data"]
    absolute = write(elsewhere, b"elsewhere\n", "a.en.gz")
    assert list(read_lines("a.en")) == ["elsewhere"]
    assert find_file(absolute) == absolute
    assert find_file(str(absolute).removesuffix(".gz")) == absolute


def test_a_missing_file_names_every_place_and_the_cure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXLM_DATA", "/nowhere")
    with pytest.raises(UserError) as error:
        find_file("corpus/train.en")
    for part in ("/nowhere/corpus/train.en\n", "/nowhere/corpus/train.en.gz", "data/corpus/train.en", "Set JAXLM_DATA"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"Looked for:\n  /nowhere/x.gz\n  /nowhere/x\nCheck the path"):
        find_file("/nowhere/x.gz")


def test_the_text_side_of_the_data_package_imports_no_jax():
    code = (
        "import sys, jaxlm.data.sources.parallel, jaxlm.data.sources.tfds, jaxlm.data.tokenizers.loading;"
        "assert not {'jax', 'tensorflow', 'tensorflow_datasets', 'sentencepiece', 'sacremoses'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
