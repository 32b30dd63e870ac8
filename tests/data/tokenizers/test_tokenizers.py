"""Every tokenizer: round trips, special ids, determinism, and reading back what was saved."""

import json
import pickle
import random

import numpy as np
import pytest

from jaxlm.data.tokenizers.base import BOS, EOS, NUM_SPECIALS, OWN_SPECIAL_IDS, PAD, UNK, SpecialIds, content_hash
from jaxlm.data.tokenizers.loading import CLASS_OF_KIND, load_tokenizer
from jaxlm.data.tokenizers.sentencepiece import SentencePiece, sample_texts
from jaxlm.data.tokenizers.simple import Bytes, Characters, Words
from jaxlm.errors import UserError

ODD = [" ", "  ", "\t", "\n", "\r", "\0", "\u2028", "\x85", "\ufeff", "\u2585", "\u2581", "\ue000", "\ue001", "\u200b"]


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmñü", k=rng.randrange(2, 7))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=10)) + "." for _ in range(count)]


def odd_texts(count: int) -> list[str]:
    """Random Unicode, with all that is known to get lost in tokenizers."""
    rng = random.Random(1)

    def piece() -> str:
        if rng.random() < 0.6:
            return rng.choice([*ODD, "the", "ab", "<s>", "</s>", "<pad>", "<unk>", "<0x41>", "\U0001f642"])
        point = rng.randrange(0x110000)
        return "x" if 0xD800 <= point < 0xE000 else chr(point)

    return ["".join(piece() for _ in range(rng.randrange(30))) for _ in range(count)]


CORPUS = sentences(1000)
CONFIGS = {
    "unigram": SentencePiece(vocab_size=420),
    "bpe": SentencePiece(vocab_size=420, model_type="bpe"),
    "bytes": Bytes(),
    "characters": Characters(),
    "words": Words(vocab_size=250),
}


@pytest.fixture(scope="module")
def fitted():
    return {name: config.fit(CORPUS) for name, config in CONFIGS.items()}


@pytest.fixture(params=CONFIGS)
def tokenizer(request, fitted):
    return fitted[request.param]


def test_special_ids(tokenizer):
    assert (PAD, UNK, BOS, EOS, NUM_SPECIALS) == (0, 1, 2, 3, 4)
    assert tokenizer.special == OWN_SPECIAL_IDS == SpecialIds(0, 1, 2, 3, start=2, end_ids=(3,), suppress=())
    assert tokenizer.special.hidden == {0, 2, 3} and tokenizer.special.all_ids == {0, 1, 2, 3}
    assert tokenizer.special.never_predicted == (0, 2)
    assert tokenizer.special.is_unknown(np.arange(-1, 4)).tolist() == [False, False, True, False, False]


def test_ids_are_int32_in_range_without_special_ids(tokenizer):
    rows = tokenizer.encode([*CORPUS[:50], ""])
    assert len(rows) == 51 and all(row.dtype == np.int32 and row.ndim == 1 for row in rows)
    assert len(rows[-1]) == 0
    ids = np.concatenate(rows)
    assert ids.max() < tokenizer.vocab_size and not np.isin(ids, [PAD, BOS, EOS]).any()
    assert tokenizer.encode([]) == [] and tokenizer.decode([]) == []


def test_decode_drops_special_ids_and_takes_any_rows(tokenizer):
    text = CORPUS[0] if tokenizer.kind != "words" else tokenizer.symbols[0] + " " + tokenizer.symbols[1]
    (row,) = tokenizer.encode([text])
    framed = [BOS, *row.tolist(), EOS, PAD, PAD]
    assert tokenizer.decode([framed, row, np.array(framed), [], [EOS]]) == [text, text, text, "", ""]


def test_ids_out_of_range_decode_as_unknown(tokenizer):
    for index in (tokenizer.vocab_size, 10**6, -1):
        (text,) = tokenizer.decode([[index]])
        (unknown,) = tokenizer.decode([[UNK]])
        assert text == unknown


@pytest.mark.parametrize("name", ["unigram", "bpe", "bytes"])
def test_nothing_is_lost(fitted, name):
    texts = [*odd_texts(600), *CORPUS[:100], " a", "a ", "▁", "▁ ▁", "", "x" * 10_000]
    tokenizer = fitted[name]
    assert tokenizer.decode(tokenizer.encode(texts)) == texts
    assert UNK not in np.concatenate(tokenizer.encode(texts))


def test_characters_and_words_lose_only_what_is_unknown():
    characters = Characters().fit(["abc \U0001f642\0\n"])
    assert characters.decode(characters.encode(["ab \U0001f642\0\nz!"])) == ["ab \U0001f642\0\n\ufffd\ufffd"]
    words = Words().fit(["the cat sat", "the <unk> dog"])
    assert words.vocab_size == NUM_SPECIALS + 4
    assert words.decode(words.encode(["the  cat\tate <unk>"])) == ["the cat <unk> <unk>"]
    assert words.encode(["<unk>"])[0].tolist() == [UNK]


def test_frequency_decides_and_ties_are_alphabetical():
    assert Words(vocab_size=7).fit(["b b a c", "d a b"]).symbols == ("b", "a", "c")
    assert Words(vocab_size=100).fit(["d c b a a"]).symbols == ("a", "b", "c", "d")
    assert Characters(vocab_size=6).fit(["bca", "ab"]).symbols == ("a", "b")


@pytest.mark.parametrize("name", CONFIGS)
def test_fitting_is_deterministic(fitted, name):
    again = CONFIGS[name].fit(iter(CORPUS))
    assert again.to_bytes() == fitted[name].to_bytes()
    assert again.fingerprint == fitted[name].fingerprint


def test_fingerprints_differ(fitted):
    assert len({tokenizer.fingerprint for tokenizer in fitted.values()}) == len(fitted)
    assert Words(vocab_size=50).fit(CORPUS).fingerprint != fitted["words"].fingerprint


def test_half_surrogates_do_not_stop_it(tokenizer):
    (row,) = tokenizer.encode(["a \ud83d b"])
    assert "\ud83d" not in tokenizer.decode([row])[0]


def test_one_text_is_refused(tokenizer):
    with pytest.raises(TypeError, match="list of texts"):
        tokenizer.encode("not a list")


def test_saved_and_read_back(tokenizer, tmp_path):
    folder = tmp_path / "run" / "tokenizer"
    tokenizer.save(folder)
    again = load_tokenizer(folder)
    assert (
        again == tokenizer and again.fingerprint == tokenizer.fingerprint and again.vocab_size == tokenizer.vocab_size
    )
    texts = CORPUS[:20]
    assert all(np.array_equal(a, b) for a, b in zip(again.encode(texts), tokenizer.encode(texts), strict=True))
    assert json.loads((folder / "tokenizer.json").read_text())["kind"] == tokenizer.kind
    assert pickle.loads(pickle.dumps(tokenizer)).decode(tokenizer.encode(texts)) == tokenizer.decode(
        tokenizer.encode(texts)
    )


def test_a_missing_or_damaged_folder_is_named(fitted, tmp_path):
    with pytest.raises(UserError, match="there is no tokenizer in"):
        load_tokenizer(tmp_path)
    fitted["bpe"].save(tmp_path)
    model, description = tmp_path / "spm.model", tmp_path / "tokenizer.json"
    content = model.read_bytes()
    model.write_bytes(content[:-1] + b"?")
    with pytest.raises(UserError, match=r"spm\.model is damaged: SHA-256"):
        load_tokenizer(tmp_path)
    model.unlink()
    with pytest.raises(UserError, match=r"spm\.model is missing"):
        load_tokenizer(tmp_path)
    model.write_bytes(content)
    good = json.loads(description.read_text())
    for broken in ('{"kind":', "[]", "{}"):
        description.write_text(broken)
        with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
            load_tokenizer(tmp_path)
    description.write_text(json.dumps({**good, "kind": "morse"}))
    with pytest.raises(UserError, match="kind 'morse', expected one of sentencepiece, bytes"):
        load_tokenizer(tmp_path)


def store(folder, kind: str, content: bytes) -> None:
    """A tokenizer of this content, under the checksum that belongs to it."""
    (folder / CLASS_OF_KIND[kind].filename).write_bytes(content)
    (folder / "tokenizer.json").write_text(json.dumps({"kind": kind, "sha256": content_hash(kind, content)}))


SPECIAL = '{"pad": 0, "unk": 1, "bos": 2, "eos": 3, "start": 2, "end_ids": [3], "suppress": []}'
CONTENTS = [
    ("words", b"[" * 100_000),
    ("words", b'["a", 1]'),
    ("words", b"\xff"),
    ("characters", b'["ab"]'),
    ("spelled words", b'{"words": ["a"], "characters": "a", "lowercase": 1}'),
    ("sentencepiece", b""),
    ("sentencepiece", b"\x0a\x05abcde"),
    ("tokenizers", b'{"vocab_size": 9, "special": {}, "tokenizer": "{}"}'),
    ("tokenizers", f'{{"vocab_size": 99999999999, "special": {SPECIAL}, "tokenizer": "{{}}"}}'.encode()),
    (
        "published_pieces",
        f'{{"source": "x", "target": "", "vocab_size": 9, "vocabulary": [], "special": {SPECIAL}}}'.encode(),
    ),
]


@pytest.mark.parametrize(("kind", "content"), CONTENTS)
def test_content_that_no_tokenizer_writes_is_refused(kind, content, tmp_path):
    store(tmp_path, kind, content)
    with pytest.raises(UserError, match="is not what such a tokenizer writes|not a SentencePiece model"):
        load_tokenizer(tmp_path).encode(["a"])


def test_a_description_of_many_levels_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"kind": ' + "[" * 100_000)
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged .*levels of JSON"):
        load_tokenizer(tmp_path)


def test_a_folder_is_replaced_whole_or_stays(fitted, tmp_path, monkeypatch):
    folder = tmp_path / "tokenizer"
    fitted["bpe"].save(folder)
    written = []

    def fail(path, content):
        written.append(path.name)
        if path.name == "tokenizer.json":
            raise OSError("disk full")
        path.write_bytes(content)

    monkeypatch.setattr("jaxlm.data.tokenizers.base.write_atomic", fail)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            fitted["words"].save(target)
    assert load_tokenizer(folder).fingerprint == fitted["bpe"].fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"] and len(written) == 4
    monkeypatch.undo()
    (tmp_path / ".tokenizer.part").mkdir()  # of a run that was killed
    fitted["words"].save(folder)
    assert load_tokenizer(folder).fingerprint == fitted["words"].fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_vocabulary_that_the_text_cannot_give(kind):
    few = ["the cat sat on the mat"] * 5
    with pytest.raises(UserError, match=r"5000 pieces, and this text gives at most (\d+): set vocab_size=\1") as error:
        SentencePiece(vocab_size=5000, model_type=kind).fit(few)
    limit = int(str(error.value).split("set vocab_size=")[1].split()[0])
    assert SentencePiece(vocab_size=limit, model_type=kind).fit(few).vocab_size == limit
    with pytest.raises(UserError, match=r"50 pieces, and this text needs at least (\d+)"):
        SentencePiece(vocab_size=50, model_type=kind).fit(few)


@pytest.mark.parametrize("config", [SentencePiece(), Characters(), Words()])
@pytest.mark.parametrize("texts", [[], [""]])
def test_no_text_is_an_error(config, texts):
    with pytest.raises(UserError, match="there is no text"):
        config.fit(texts)


def test_a_vocabulary_of_special_ids_alone_is_refused():
    with pytest.raises(UserError, match="more than the 4 special ones"):
        Words(vocab_size=4).fit(["a"])


@pytest.mark.parametrize("odd", ["\u2585", "\u2581", "\0", "\ue000\ue002"])
def test_texts_with_characters_of_sentencepiece_itself_are_learnt_from(odd):
    texts = [f"{text} {odd}{odd} wunderbar{odd}" for text in sentences(40)]
    tokenizer = SentencePiece(330, "bpe").fit(texts)
    assert tokenizer.decode(tokenizer.encode(texts)) == texts
    assert len(tokenizer.encode(["wunderbar"])[0]) < 4


def test_options_of_sentencepiece():
    folded = SentencePiece(vocab_size=330, normalization="nmt_nfkc", remove_extra_whitespaces=True).fit(CORPUS)
    assert folded.decode(folded.encode(["  ﬁ  ①  "])) == ["fi 1"]
    pieces = SentencePiece(vocab_size=60, byte_fallback=False, user_defined_symbols=("\n",)).fit(CORPUS)
    assert pieces.decode(pieces.encode(["ab\nab 漢"])) == ["ab\nab \ufffd"]


def test_training_is_silent_and_takes_long_lines(capfd):
    SentencePiece(vocab_size=330, model_type="bpe").fit(
        [*CORPUS, " ".join(CORPUS)[:10_000], "nul \0", "two\nlines \ud83d"]
    )
    out = capfd.readouterr()
    assert out.out == out.err == ""


def test_a_big_corpus_is_sampled_evenly_and_deterministically():
    texts = [str(number) for number in range(5000)]
    chosen = sample_texts(iter(texts), 500, seed=3)
    assert chosen == sample_texts(texts, 500, seed=3) != sample_texts(texts, 500, seed=4)
    assert len(set(chosen)) == 500 and 2200 < sum(map(int, chosen)) / 500 < 2800
    assert sample_texts(texts[:10] + ["", " "], 500, seed=3) == texts[:10]
    assert SentencePiece(vocab_size=330, sample_size=100).fit(CORPUS) == SentencePiece(
        vocab_size=330, sample_size=100
    ).fit(CORPUS)
