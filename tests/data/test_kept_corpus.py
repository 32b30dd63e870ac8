"""The pairs of the built-in corpus are kept with the compiled programs."""

import itertools

from jaxlm.data.minilang import corpus
from jaxlm.data.minilang.corpus import MiniLang


def test_pairs_are_kept(tmp_path, monkeypatch):
    """They are sampled once; a damaged file of them is made again; a reader that stops early keeps none."""
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path))
    assert len(list(itertools.islice(MiniLang(count=50), 3))) == 3 and not list(tmp_path.iterdir())
    pairs = list(MiniLang(count=50))
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_sample_derivations", lambda split, seed: iter(()))
        assert list(MiniLang(count=50)) == pairs
        assert list(MiniLang(count=50, source="es")) == [pair[::-1] for pair in pairs]
        assert list(MiniLang(count=49)) == []
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert list(MiniLang(count=50)) == pairs
