"""The catalog of data sets, and downloads from a server that fails in every way a server can."""

import gzip
import hashlib
import io
import json
import os
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_experiments import NAMES

from jaxlm.cli.main import main
from jaxlm.config.serialization import to_json
from jaxlm.data import download
from jaxlm.data.catalog import DataSet, File, content_fault, get_command, read_catalog
from jaxlm.data.files import find_file
from jaxlm.errors import UserError
from jaxlm.experiment import load_experiment

CONTENT = b"".join(b"line %d of a corpus\n" % number for number in range(5000))
FILE = File(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Handler(BaseHTTPRequestHandler):
    """Answers `/KIND`, and counts the requests of each kind."""

    counts: dict[str, int] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        kind = self.path.strip("/")
        count = self.counts[kind] = self.counts.get(kind, 0) + 1
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and kind != "no_ranges" else 0
        if kind == "missing" or (kind == "busy" and count == 1):
            return self.send_error(404 if kind == "missing" else 503)
        if kind == "redirect":
            return self.answer(302, {"Location": "/good"}, b"")
        if kind == "loop":
            return self.answer(302, {"Location": "/loop"}, b"")
        content = {
            "other": CONTENT[::-1], "endless": CONTENT * 200, "gzip": gzip.compress(CONTENT), "short": CONTENT[:-1],
            "zip": archive("in/corpus.txt"), "wrong_zip": archive("another.txt"), "page": b"<html>Sign in</html>",
        }.get(kind, CONTENT)[start:]  # fmt: skip
        headers = {"Content-Length": str(len(content))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/{start + len(content)}"
        if kind == "says_less":
            headers["Content-Length"] = "1000"
        if kind == "says_more":
            headers["Content-Length"] = str(len(content) + 1000)
        if kind in ("cut", "no_ranges") and count == 1:
            content = content[: len(content) // 2]
        self.answer(206 if start else 200, headers, content)
        if kind == "stall" and count == 1:
            time.sleep(1)

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        stalls = self.path == "/stall" and self.counts["stall"] == 1
        try:
            self.wfile.write(content[:1000] if stalls else content)
            self.wfile.flush()
        except ConnectionError:  # the client has had enough
            pass


def archive(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr(name, CONTENT)
    return stream.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{service.server_address[1]}"
        service.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    Handler.counts.clear()


def data_set(*addresses: str, name: str = "corpus.txt.gz", file: File = FILE) -> DataSet:
    return DataSet("a corpus", "tests", "CC0-1.0", "open", list(addresses), {name: file})


@pytest.mark.parametrize(
    "kind", ["good", "redirect", "cut", "no_ranges", "stall", "busy", "gzip", "says_less", "says_more"]
)
def test_a_server_that_gives_all_in_the_end(kind, server, tmp_path):
    """A cut or silent server is asked for the rest, one that lies about a length is judged by the content."""
    source = data_set(f"{server}/{kind}", f"{server}/good")
    download.get_file(source, "corpus.txt.gz", tmp_path)
    assert gzip.decompress((tmp_path / "corpus.txt.gz").read_bytes()) == CONTENT
    assert os.listdir(tmp_path) == ["corpus.txt.gz"]
    if kind in ("cut", "stall"):
        assert Handler.counts == {kind: 2}, "the same address gives the rest"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "404"),
        ("other", "other content"),
        ("short", "expected 1"),
        ("page", "20 bytes of content"),
        ("endless", "sends more than"),
        ("loop", "infinite loop"),
    ],
)
def test_a_server_that_gives_something_else(kind, reason, server, tmp_path):
    """The next address is taken; without one the error has every address and its reason, and nothing is left."""
    with pytest.raises(UserError, match=f"corpus.txt.gz could not be fetched:\n  {server}/{kind}: .*{reason}"):
        download.get_file(data_set(f"{server}/{kind}"), "corpus.txt.gz", tmp_path)
    assert not (tmp_path / "corpus.txt.gz").exists()
    download.get_file(data_set(f"{server}/{kind}", f"{server}/good"), "corpus.txt.gz", tmp_path)
    assert content_fault(tmp_path / "corpus.txt.gz", FILE) == ""


def test_nobody_answers(tmp_path):
    with pytest.raises(UserError, match="Connection refused"):
        download.get_file(data_set("http://127.0.0.1:9/x"), "corpus.txt.gz", tmp_path)


def test_a_member_of_an_archive(server, tmp_path):
    file = File(FILE.bytes, FILE.sha256, member="in/corpus.txt")
    download.get_file(data_set(f"{server}/zip", file=file), "corpus.txt.gz", tmp_path)
    assert content_fault(tmp_path / "corpus.txt.gz", FILE) == ""
    for kind in ("wrong_zip", "page"):
        with pytest.raises(UserError, match="not an archive with in/corpus.txt"):
            download.get_file(data_set(f"{server}/{kind}", file=file, name="2.txt.gz"), "2.txt.gz", tmp_path)


def test_a_full_disk(server, tmp_path):
    (tmp_path / ".corpus.txt.gz.download").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device: free some space, and start again"):
        download.get_file(data_set(f"{server}/good"), "corpus.txt.gz", tmp_path)


def test_a_download_that_was_killed_continues(server, tmp_path):
    (tmp_path / ".corpus.txt.gz.download").write_bytes(CONTENT[:4000])
    seen = []
    download.get_file(data_set(f"{server}/good"), "corpus.txt.gz", tmp_path, lambda *counts: seen.append(counts))
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and seen[0][0] > 4000
    assert content_fault(tmp_path / "corpus.txt.gz", FILE) == ""


def test_another_file_of_the_name_is_not_overwritten(tmp_path):
    (tmp_path / "corpus.txt.gz").write_bytes(b"my own")
    with pytest.raises(UserError, match=r"has 6 bytes of content, expected .* move it away"):
        download.missing_files(data_set(), tmp_path)


def test_every_entry_can_be_had_or_says_how():
    for name, entry in read_catalog().items():
        assert entry.content and entry.task and entry.license and entry.use in ("open", "noncommercial", "unstated")
        assert entry.addresses or entry.instructions or entry.tfds, name
        assert all(address.startswith("https://") for address in entry.addresses)
        assert all(len(file.sha256) == 64 and file.bytes > 0 for file in entry.files.values())


def test_what_is_missing_is_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXLM_DATA", raising=False)
    assert get_command("mine/train.txt") == ""
    with pytest.raises(UserError, match="`jaxlm data get wikitext2`"):
        find_file("wikitext2/train.txt.gz")


@pytest.mark.parametrize("name", NAMES)
def test_the_data_of_every_experiment_are_in_the_catalog(name):
    """Except for the built-in corpus, and for files that another command of the experiment writes."""
    config = to_json(load_experiment(name))
    files = re.findall(r'"([\w./-]+/[\w.-]+\.(?:gz|txt|tsv|jsonl|conllu|xml))"', json.dumps(config))
    assert all(get_command(file) for file in files if not file.startswith("data/"))


def test_the_command(monkeypatch, capsys, server, tmp_path):
    entries = {"mine": data_set(f"{server}/good"), "theirs": data_set(f"{server}/good")}
    entries["theirs"] = DataSet(**{**entries["theirs"].__dict__, "use": "noncommercial"})
    monkeypatch.setattr("jaxlm.cli.tools.data.read_catalog", lambda: entries)
    folder = ["--folder", str(tmp_path)]
    assert main(["data", "get", "mine", *folder]) == 0
    assert main(["data", "get", "theirs", *folder]) == 1
    assert "add --accept-license" in capsys.readouterr().err
    assert main(["data", "get", "theirs", "--accept-license", *folder]) == 0
    assert main(["data", "check", *folder]) == 0
    Path(tmp_path / "mine/corpus.txt.gz").write_bytes(b"")
    assert main(["data", "check", "mine", *folder]) == 1
    assert "1 with a fault" in capsys.readouterr().out
    assert main(["data", "list", *folder]) == 0
    assert "CC0-1.0" in capsys.readouterr().out
    assert main(["data", "get", "theirss", *folder]) == 2
    assert "did you mean theirs?" in capsys.readouterr().err


@pytest.mark.data
def test_the_files_at_hand_are_those_of_the_catalog():
    folder = os.environ.get("JAXLM_DATA")
    if not folder:
        pytest.skip("JAXLM_DATA is not set")
    assert main(["data", "check", "--folder", folder]) == 0
