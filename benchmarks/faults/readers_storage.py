"""The readers of jaxlm's own files: workdirs, tokenizers, shards, logs, constraints, n-gram models (see `readers`)."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults.readers import Reader, file_reader
from jaxlm.data.tokenizers.base import TOKENIZER_JSON, content_hash
from jaxlm.data.tokenizers.loading import CLASS_OF_KIND, load_tokenizer
from jaxlm.errors import UserError

SENTENCES = ["the green witch arrived", "a dog and a cat", "el perro ladr\u00f3", "one two three four five"] * 4
PROBES = ["the dog", "", "\u2581 x\u0000\ud800 \U0001f600 </s>"]


def _use_tokenizer(folder: Path) -> None:
    """Everything that is asked of a tokenizer after it was read."""
    from jaxlm.data.tokenizers.token_bytes import get_token_bytes

    tokenizer = load_tokenizer(folder)
    tokenizer.decode([row.tolist() for row in tokenizer.encode(PROBES)])
    tokenizer.decode([list(range(min(tokenizer.vocab_size, 300))), [10**6]])
    with contextlib.suppress(UserError):  # the bytes of some tokenizers are not known
        get_token_bytes(tokenizer)
    _ = tokenizer.fingerprint, repr(tokenizer), tokenizer.special.is_unknown([1, 2])


def _tokenizer_reader(make: Callable[[], Any]) -> Reader:
    """The content of a tokenizer, under the checksum that belongs to it."""

    def prepare(folder: Path) -> list[bytes]:
        made = make()
        made.save(folder)
        return [made.to_bytes()]

    def read(content: bytes, folder: Path) -> None:
        description = json.loads((folder / TOKENIZER_JSON).read_bytes())
        kind = description["kind"]
        (folder / CLASS_OF_KIND[kind].filename).write_bytes(content)
        (folder / TOKENIZER_JSON).write_text(json.dumps(description | {"sha256": content_hash(kind, content)}))
        _use_tokenizer(folder)

    return Reader(prepare, read)


def _words() -> Any:
    from jaxlm import Words

    return Words(40).fit(SENTENCES)


def _characters() -> Any:
    from jaxlm import Characters

    return Characters(40).fit(SENTENCES)


def _bytes() -> Any:
    from jaxlm import Bytes

    return Bytes().fit(SENTENCES)


def _words_with_characters() -> Any:
    from jaxlm import WordsWithChars

    return WordsWithChars(40, 30).fit(SENTENCES)


def sentencepiece() -> Any:
    """A small model, also for the readers of published ones."""
    from jaxlm import SentencePiece

    return SentencePiece(30, byte_fallback=False).fit(SENTENCES)


def byte_level_bpe() -> str:
    """The `tokenizer.json` of a byte-level BPE."""
    import tokenizers

    learnt = tokenizers.ByteLevelBPETokenizer()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    learnt.train_from_iterator(SENTENCES, vocab_size=280, special_tokens=special, show_progress=False)
    return learnt.to_str()


def _fast() -> Any:
    from jaxlm.data.tokenizers.base import SpecialIds
    from jaxlm.data.tokenizers.pretrained import FastTokenizer

    return FastTokenizer(byte_level_bpe(), 290, SpecialIds(pad=0, unk=3, bos=1, eos=2, start=1))


def _published_pieces() -> Any:
    from jaxlm.data.tokenizers.base import SpecialIds
    from jaxlm.data.tokenizers.pretrained import PretrainedSentencePiece

    model = sentencepiece().to_bytes()
    special = SpecialIds(pad=0, unk=1, bos=None, eos=2, start=0)
    return PretrainedSentencePiece(model, model, 70, special, ("<pad>", "<unk>", "</s>", ">>es<<", "\u2581the"))


def _prepare_description(folder: Path) -> list[bytes]:
    _words().save(folder)
    return [(folder / TOKENIZER_JSON).read_bytes()]


def _read_description(content: bytes, folder: Path) -> None:
    (folder / TOKENIZER_JSON).write_bytes(content)
    _use_tokenizer(folder)


def prepare_shards(folder: Path) -> list[bytes]:
    from jaxlm.data.storage.shards import SHARD_INDEX, build_shards

    build_shards(SENTENCES, folder / "shards", _words(), shard_bytes=100)
    return [(folder / "shards" / SHARD_INDEX).read_bytes()]


def _read_shards(folder: Path) -> None:
    from jaxlm import Shards
    from jaxlm.data.files import ReadStats

    source = Shards(str(folder / "shards"))
    for _ in source.read(ReadStats()):
        pass
    source.check()


def _read_shard_index(content: bytes, folder: Path) -> None:
    (folder / "shards" / "index.json").write_bytes(content)
    _read_shards(folder)


def _prepare_ends(folder: Path) -> list[bytes]:
    prepare_shards(folder)
    return [(folder / "shards" / "00000.ends.npy").read_bytes()]


def _read_ends(content: bytes, folder: Path) -> None:
    (folder / "shards" / "00000.ends.npy").write_bytes(content)
    _read_shards(folder)


def _prepare_record(folder: Path) -> list[bytes]:
    prepare_shards(folder)
    return [(folder / "shards" / "00000.json").read_bytes()]


def _read_record(content: bytes, folder: Path) -> None:
    """A record that cannot be used is made again."""
    (folder / "shards" / "00000.json").write_bytes(content)
    from jaxlm.data.storage.shards import build_shards

    build_shards(SENTENCES, folder / "shards", _words(), shard_bytes=100)


def _read_metrics(file: Path) -> None:
    from jaxlm.training.metrics_log import MetricsLog, read_metrics
    from jaxlm.workdir import Workdir

    read_metrics(file)
    with MetricsLog(Workdir(file.parent), 10, 4, "valid/loss") as log:
        log.write(6, {"train/loss": 1.0})


METRICS = (
    b'{"step": 2, "train/loss": 5.2, "time/waiting": 0.01}\n{"step": 4, "train/loss": "nan", "note": "x"}\n'
    b'{"step": 4, "valid/loss": 5.1, "valid/bleu": 0.0}\n{"step": 6, "valid/loss": 4.1}\n'
)
ARPA = (
    b"\\data\\\nngram 1=5\nngram 2=3\nngram 3=1\n\n\\1-grams:\n-1.0\t<unk>\n-99\t<s>\t-0.3\n-0.7\t</s>\n"
    b"-0.5\ta\t-0.2\n-0.6\tdog\n\n\\2-grams:\n-0.3\t<s> a\t-0.1\n-0.4\ta dog\n-0.2\tdog </s>\n\n"
    b"\\3-grams:\n-0.1\t<s> a dog\n\n\\end\\\n"
)


def _read_arpa(file: Path) -> None:
    from jaxlm.ngram.arpa import read_arpa

    read_arpa(file)


def _read_regex(file: Path) -> None:
    from jaxlm.grammar.constraint import regex

    regex(file.read_bytes().decode(errors="surrogateescape"))


def _read_schema(file: Path) -> None:
    from jaxlm.grammar.constraint import json_schema

    json_schema(file)


def _read_choices(file: Path) -> None:
    from jaxlm.data.files import read_lines
    from jaxlm.grammar.constraint import choices

    choices(read_lines(file))


REGEXES = [
    rb"[a-z]+(?: [a-z]+){0,3}\.", rb"(?i)(yes|no)(, (?:it|he) is)?", rb"\d{1,3}(?:,\d{3})*|-?[0-9]\x41",
    rb"^[^\W_]+\s*$",
]  # fmt: skip
SCHEMAS = [
    b'{"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}, '
    b'"tags": {"type": "array", "items": {"enum": ["a", 1, null]}, "maxItems": 3}}, "required": ["name"]}',
    b'{"$defs": {"x": {"anyOf": [{"const": 1}, {"type": ["null", "boolean"]}]}}, "type": "object", '
    b'"properties": {"y": {"$ref": "#/$defs/x"}, "z": {"type": "string", "minLength": 1, "maxLength": 3}}, '
    b'"additionalProperties": false}',
]

STORAGE_READERS: dict[str, Reader] = {
    "tokenizer.json": Reader(_prepare_description, _read_description),
    "words": _tokenizer_reader(_words),
    "characters": _tokenizer_reader(_characters),
    "bytes": _tokenizer_reader(_bytes),
    "words with characters": _tokenizer_reader(_words_with_characters),
    "sentencepiece": _tokenizer_reader(sentencepiece),
    "fast tokenizer": _tokenizer_reader(_fast),
    "published pieces": _tokenizer_reader(_published_pieces),
    "shard index": Reader(prepare_shards, _read_shard_index),
    "shard ends": Reader(_prepare_ends, _read_ends),
    "shard record": Reader(_prepare_record, _read_record),
    "metrics": file_reader("metrics.jsonl", [METRICS], _read_metrics),
    "arpa": file_reader("a.arpa", [ARPA], _read_arpa),
    "regex": file_reader("a.regex", REGEXES, _read_regex),
    "schema": file_reader("a.json", SCHEMAS, _read_schema),
    "choices": file_reader("a.choices", [b"yes\nno\nno, never\nsomewhere else\n"], _read_choices),
}
