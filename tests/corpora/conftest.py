"""The folder of the small corpus."""

import json
import random

import pytest
from fixtures.small_corpus import sentence


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two sources of 30 documents: copies within and across them, an address, a document that is too short."""
    draw = random.Random(0)
    web = [sentence(draw) for _ in range(30)]
    web[3] = web[3] + " Write to ana@mail.org now."
    web[7], web[9] = "too short", web[5].upper()  # an exact copy in normal form
    lines = [{"url": f"https://a.site{i}.org/x", "text": text, "date": "2024"} for i, text in enumerate(web)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    books = [sentence(draw) for _ in range(30)]
    books[2] = web[11] + " More."  # a near copy, longer, in the source that has priority
    books[4] = "The license that surrounds the book, whose beginning follows this line: START of the book"
    (tmp_path / "books.txt").write_text("\r\n".join(books) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXLM_DATA", str(tmp_path))
    return tmp_path
