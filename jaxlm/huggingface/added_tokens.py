"""The tokens of a published model that its tokenizer looks for in the text itself: end marks, sentinels, added tokens.

They are named by `tokenizer_config.json` (`added_tokens_decoder`), or else by `added_tokens.json`, and by the roles in
`special_tokens_map.json` and `tokenizer_config.json`, as in `pad_token`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypedDict

from jaxlm.data.tokenizers.pretrained import AddedToken
from jaxlm.errors import UserError
from jaxlm.huggingface.checkpoint_folder import FETCH_AGAIN, read_optional
from jaxlm.json_files import check_type

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")

USUAL_TOKENS = {"t5": ("</s>", "<unk>", "<pad>"), "marian": ("</s>", "<unk>", "<pad>")}
"""The special tokens of a family whose folder names none; of the others "<unk>", "<s>" and "</s>"."""

NUM_SENTINELS = 100
"""T5 adds "<extra_id_0>" to "<extra_id_99>", the first with the highest id, unless `extra_ids` says otherwise."""


class TokenEntry(TypedDict, total=False):
    """An entry of `added_tokens_decoder`."""

    content: str
    special: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    single_word: bool


@dataclass(frozen=True)
class DeclaredToken:
    """A token of a folder: its content, its id if the folder tells it, and the options of `tokenizers.AddedToken`."""

    content: str
    id: int | None
    options: Mapping[str, bool]


def declared_tokens(folder: Path) -> list[DeclaredToken]:
    """The tokens that a folder names, by increasing ids. Raises UserError if its files are damaged."""
    config, special_map, added = (
        read_optional(folder, f"{name}.json") for name in ("tokenizer_config", "special_tokens_map", "added_tokens")
    )
    place = folder / "tokenizer_config.json"
    entries = config.get("added_tokens_decoder") or {}
    check_type(entries, dict[str, TokenEntry], f"{place}.added_tokens_decoder", FETCH_AGAIN)
    check_type(added, dict[str, int], str(folder / "added_tokens.json"), FETCH_AGAIN)
    named = _named_tokens(config if entries else {**special_map, **config}, place)
    tokens: dict[str, DeclaredToken] = {}
    for index, entry in sorted(entries.items(), key=lambda item: item[0].zfill(20)):
        if not index.isdecimal() or not entry.get("content"):
            raise UserError(f"{place} has the token {index[:20]!r}: {entry!r:.80}, expected an id and its content")
        options = {name: value for name, value in entry.items() if name != "content"}
        tokens[entry["content"]] = DeclaredToken(entry["content"], int(index), options)
    for content, index in sorted(added.items(), key=lambda item: item[1]) if not entries else ():
        tokens[content] = DeclaredToken(
            content, index, {"special": content in named, "normalized": content not in named}
        )
    for content in named:
        tokens.setdefault(content, DeclaredToken(content, None, {"special": True, "normalized": False}))
    return list(tokens.values())


def _named_tokens(entries: Mapping[str, Any], place: Path) -> list[str]:
    named = [entries.get(role) for role in ROLES]
    for name in LISTS:
        value = entries.get(name) or []
        named += list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    contents = [token.get("content") if isinstance(token, dict) else token for token in named if token]
    check_type(contents, list[str], f"{place}: the special tokens", FETCH_AGAIN)
    return list(dict.fromkeys(contents))


def add_tokens(parsed: Any, tokens: Sequence[DeclaredToken], folder: Path) -> bool:
    """Add the tokens that a `tokenizers.Tokenizer` lacks. Returns whether it lacked any; raises UserError for an id
    that it gives to another token.
    """
    import tokenizers

    before = parsed.get_added_tokens_decoder()
    for special, group in groupby(tokens, key=lambda token: bool(token.options.get("special"))):
        add = parsed.add_special_tokens if special else parsed.add_tokens
        # At once: each call rebuilds the search for all added tokens.
        add([tokenizers.AddedToken(token.content, **token.options) for token in group])
    for token in tokens:
        if token.id not in (None, index := parsed.token_to_id(token.content)):
            raise UserError(
                f"{folder}: tokenizer_config.json or added_tokens.json gives {token.content!r} the id {token.id}, "
                f"tokenizer.json gives it {index}: fetch all files from one place"
            )
    return before.keys() != parsed.get_added_tokens_decoder().keys()


def find_added_tokens(folder: Path, config: Mapping[str, Any], pieces: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """The added tokens of a SentencePiece model with these pieces, the longest first."""
    model_type = str(config.get("model_type"))
    declared = declared_tokens(folder)
    usual = (
        []
        if any(token.id is not None for token in declared)
        else USUAL_TOKENS.get(model_type, ("<unk>", "<s>", "</s>"))
    )
    tokens = declared + [DeclaredToken(content, None, {}) for content in usual if content in pieces]
    known = dict(pieces)
    if model_type == "t5":
        sentinels = {f"<extra_id_{i}>": len(pieces) + NUM_SENTINELS - 1 - i for i in range(NUM_SENTINELS)}
        known |= sentinels
        tokens += [DeclaredToken(content, None, {}) for content in sentinels]
    by_content: dict[str, AddedToken] = {}
    for token in tokens:
        if token.id is None and token.content not in known:
            known[token.content] = max(known.values()) + 1
        known[token.content] = index = known[token.content] if token.id is None else token.id
        special = bool(token.options.get("special", True))
        strip = (bool(token.options.get(name)) for name in ("lstrip", "rstrip"))
        by_content.setdefault(token.content, AddedToken(token.content, index, special, *strip))
    return tuple(sorted(by_content.values(), key=lambda token: (-len(token.content), token.content)))
