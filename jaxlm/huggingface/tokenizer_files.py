"""The tokenizer of a published model: its files, and the special ids that they and config.json name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from jaxlm.data.chat.dialogue import Dialogue, InvalidRecord, Turn
from jaxlm.data.chat.encoding import DialogueEncoder
from jaxlm.data.chat.jinja_template import MAX_TEMPLATE_BYTES, JinjaChatTemplate
from jaxlm.data.tokenizers.base import SpecialIds
from jaxlm.data.tokenizers.pretrained import FastTokenizer, PretrainedSentencePiece, parse_tokenizer_json
from jaxlm.data.tokenizers.sentencepiece import parse_sentencepiece
from jaxlm.errors import UserError
from jaxlm.filesystem import read_bounded
from jaxlm.huggingface.added_tokens import add_tokens, declared_tokens, find_added_tokens
from jaxlm.huggingface.checkpoint_folder import FETCH_AGAIN, published_file, read_optional
from jaxlm.json_files import MAX_JSON_BYTES, parse_json, read_json

ModelKind = Literal["decoder", "encoder", "encoder_decoder"]

PieceToId = Callable[[str], int | None]

DEFAULT_SPECIAL_TOKENS = {
    "cls_token": ("[CLS]", "<s>"), "sep_token": ("[SEP]", "</s>"), "unk_token": ("[UNK]", "<unk>"),
    "mask_token": ("[MASK]", "<mask>"),
}  # fmt: skip
"""The special tokens of BERT and RoBERTa, for folders that name none."""

SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model")

LLAMA_TYPES = ("llama", "mistral")
"""Families whose tokenizer prepends a space in its own way."""


OVERRIDING_OPTIONS = {
    "add_prefix_space": ("ByteLevel", "add_prefix_space"), "do_lower_case": ("BertNormalizer", "lowercase"),
    "strip_accents": ("BertNormalizer", "strip_accents"),
    "tokenize_chinese_chars": ("BertNormalizer", "handle_chinese_chars"),
}  # fmt: skip
"""Option of tokenizer_config.json -> the type of a part of tokenizer.json, and its entry."""


class LlamaOptions(TypedDict, total=False):
    """The entries of tokenizer_config.json that decide where a space is prepended."""

    legacy: bool | None
    add_prefix_space: bool | None


def read_tokenizer(
    folder: Path, config: Mapping[str, Any], vocab_size: int, kind: ModelKind = "decoder"
) -> FastTokenizer | PretrainedSentencePiece:
    """The tokenizer of a folder: Marian's two SentencePiece models, `tokenizer.json`, or one SentencePiece model.

    Raises UserError if there is none, if it has more pieces than the model embeds, or lacks special tokens.
    """
    if published_file(folder, "source.spm") and published_file(folder, "vocab.json"):
        return _read_marian(folder, config, vocab_size, kind)
    if path := published_file(folder, "tokenizer.json"):
        content = _read_text(path)
        parsed = parse_tokenizer_json(content)
        # Tokens that were added later are not counted: the model need not embed them.
        last_id = max(parsed.get_vocab(with_added_tokens=False).values(), default=-1)
        _check_num_pieces(folder, last_id + 1, vocab_size)
        _check_options(folder, content)
        if add_tokens(parsed, declared_tokens(folder), folder):
            content = parsed.to_str()
        return FastTokenizer(content, vocab_size, _special_ids(folder, config, kind, parsed.token_to_id))
    for name in SENTENCEPIECE_FILES:
        if path := published_file(folder, name):
            model = read_bounded(path, MAX_JSON_BYTES)
            processor = parse_sentencepiece(model)
            _check_num_pieces(folder, processor.get_piece_size(), vocab_size)
            special = replace(_special_ids(folder, config, kind, lambda piece: None), unk=processor.unk_id())
            pieces = {processor.id_to_piece(index): index for index in range(processor.get_piece_size())}
            added = find_added_tokens(folder, config, pieces)
            scheme = _prepend_scheme(folder, config) if processor.is_byte(processor.piece_to_id("<0x41>")) else ""
            return PretrainedSentencePiece(model, model, vocab_size, special, added_tokens=added, prepend_scheme=scheme)
    raise UserError(
        f"{folder} has no tokenizer that jaxlm reads: expected tokenizer.json, source.spm with target.spm and "
        f"vocab.json, or one of {', '.join(SENTENCEPIECE_FILES)}; `tokenizer.save_pretrained(folder)` writes one"
    )


def _check_options(folder: Path, content: str) -> None:
    """Raises UserError for an option of tokenizer_config.json by which Transformers changes tokenizer.json."""
    path, options = folder / "tokenizer_config.json", read_optional(folder, "tokenizer_config.json")
    cure = "load and save the tokenizer with Transformers, which writes both files again"
    if options.get("split_special_tokens"):
        raise UserError(f"{path} has split_special_tokens = true, which jaxlm does not support: {cure}")
    if str(options.get("tokenizer_class")).startswith(("PreTrainedTokenizer", "TokenizersBackend", "Llama")):
        return  # Transformers, too, takes tokenizer.json as it is
    given = {name: options[name] for name in OVERRIDING_OPTIONS if type(options.get(name)) is bool}
    sections = parse_json(content, str(folder / "tokenizer.json"), dict, FETCH_AGAIN) if given else {}
    parts = [sections.get(name) or {} for name in ("normalizer", "pre_tokenizer")]
    parts += [part for whole in parts for name in ("normalizers", "pretokenizers") for part in whole.get(name) or ()]
    for option, value in given.items():
        kind, entry = OVERRIDING_OPTIONS[option]
        for part in parts:
            if part.get("type") == kind:
                stored = part.get("lowercase") if part.get(entry) is None else part[entry]
                if stored != value:
                    raise UserError(f"{path} has {option} = {value}, and tokenizer.json has {entry} = {stored}: {cure}")


def _prepend_scheme(folder: Path, config: Mapping[str, Any]) -> Literal["", "first", "always"]:
    if config.get("model_type") not in LLAMA_TYPES:
        return ""
    options = read_optional(folder, "tokenizer_config.json", LlamaOptions)
    if options.get("add_prefix_space") is False:
        raise UserError(
            f"{folder / 'tokenizer_config.json'} has add_prefix_space = false, which needs a tokenizer.json: "
            "`save_pretrained` writes one"
        )
    return "always" if options.get("legacy") else "first"


def _read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    try:
        return read_bounded(path, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): {FETCH_AGAIN}") from None


def find_mask_token(folder: Path, tokenizer: FastTokenizer | PretrainedSentencePiece) -> str:
    """The piece that replaces a masked token, such as "[MASK]"; "" if the tokenizer has none."""
    pieces = tokenizer.pieces if isinstance(tokenizer, FastTokenizer) else ()
    return next((token for token in _tokens_of_role(folder, "mask_token") if token in pieces), "")


def _read_marian(folder: Path, config: Mapping[str, Any], vocab_size: int, kind: ModelKind) -> PretrainedSentencePiece:
    shared = config.get("share_encoder_decoder_embeddings", True)
    id_of, pieces = _read_vocabulary(folder, "vocab.json", vocab_size if shared else config["vocab_size"])
    target_pieces: tuple[str, ...] = ()
    if published_file(folder, "target_vocab.json"):
        target_pieces = _read_vocabulary(folder, "target_vocab.json", vocab_size)[1]
    special = replace(_special_ids(folder, config, kind, id_of.get), unk=id_of.get("<unk>", 0))
    source, target = (_read_model(folder, name) for name in ("source.spm", "target.spm"))
    added = find_added_tokens(folder, config, id_of)
    return PretrainedSentencePiece(source, target, vocab_size, special, pieces, target_pieces, added)


def _read_model(folder: Path, name: str) -> bytes:
    if not (path := published_file(folder, name)):
        raise UserError(f"{folder} has no {name}: {FETCH_AGAIN}")
    return read_bounded(path, MAX_JSON_BYTES)


def _read_vocabulary(folder: Path, name: str, vocab_size: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """The ids of pieces, and the pieces by their ids. Raises UserError for ids beyond `vocab_size` or used twice."""
    id_of = read_json(folder / name, dict[str, int], FETCH_AGAIN)
    _check_num_pieces(folder, max(id_of.values(), default=-1) + 1, vocab_size)
    if min(id_of.values(), default=0) < 0 or len(set(id_of.values())) < len(id_of):
        raise UserError(f"{folder / name} gives an id below 0, or one id to two pieces: {FETCH_AGAIN}")
    pieces = [""] * (max(id_of.values(), default=-1) + 1)
    for piece, index in id_of.items():
        pieces[index] = piece
    return id_of, tuple(pieces)


def _check_num_pieces(folder: Path, num_pieces: int, vocab_size: int) -> None:
    if num_pieces > vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {num_pieces} pieces, the model embeds {vocab_size} (vocab_size): these "
            "files belong to two models; fetch both from one place"
        )


def _special_ids(folder: Path, config: Mapping[str, Any], kind: ModelKind, piece_to_id: PieceToId) -> SpecialIds:
    """The special ids: of an encoder by its special tokens, of a model that generates by its config.json."""
    if kind == "encoder":
        ids = {role: _find_id(folder, role, piece_to_id) for role in ("cls_token", "sep_token", "unk_token")}
        for role in (role for role, token_id in ids.items() if token_id is None):
            token = _tokens_of_role(folder, role)[0]
            raise UserError(f"{folder} has no tokenizer.json with the {role} {token!r}: `save_pretrained` writes one")
        cls_id, sep_id, unk_id = ids.values()
        return SpecialIds(_pad_id(config), unk_id, bos=cls_id, eos=sep_id, start=cls_id, end_ids=(sep_id,))
    eos, bos = config.get("eos_token_id"), config.get("bos_token_id")
    end_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    start = config.get("decoder_start_token_id")
    if kind == "decoder":
        start = end_ids[0] if bos is None and end_ids else bos
    if not end_ids or start is None:
        missing = "decoder_start_token_id" if end_ids else "eos_token_id"
        raise UserError(f"config.json has no {missing}, and without it no text begins or ends: add the entry")
    unk = config.get("unk_token_id")
    suppress = {words[0] for words in config.get("bad_words_ids") or () if len(words) == 1}
    suppress |= set(config.get("suppress_tokens") or ())
    # Marian and T5 begin with their padding, which has a logit like any other id and must not be generated.
    suppress |= {start} - {end_ids[0]} if kind == "encoder_decoder" else set()
    return SpecialIds(
        pad=_pad_id(config), unk=_find_id(folder, "unk_token", piece_to_id) if unk is None else unk,
        bos=bos, eos=end_ids[0], start=start, end_ids=end_ids, suppress=tuple(sorted(suppress)),
    )  # fmt: skip


def _pad_id(config: Mapping[str, Any]) -> int | None:
    return None if config.get("pad_token_id") == -1 else config.get("pad_token_id")


def _find_id(folder: Path, role: str, piece_to_id: PieceToId) -> int | None:
    ids = (piece_to_id(token) for token in _tokens_of_role(folder, role))
    return next((token_id for token_id in ids if token_id is not None), None)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    return read_optional(folder, "special_tokens_map.json") | read_optional(folder, "tokenizer_config.json")


def _tokens_of_role(folder: Path, role: str) -> tuple[str, ...]:
    """The token of a role by the tokenizer configuration of the folder, or the usual ones if it names none."""
    token = _tokenizer_config(folder).get(role)
    if token is None:
        return DEFAULT_SPECIAL_TOKENS[role]
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise UserError(
            f"{folder}: the {role} of special_tokens_map.json or tokenizer_config.json is {token!r:.80}, expected a "
            "text: fetch the folder again"
        )
    return (text,)


PublishedTokenizer = FastTokenizer | PretrainedSentencePiece


def read_chat_template(folder: Path, tokenizer: PublishedTokenizer) -> JinjaChatTemplate | None:
    """The template of a folder, or None. Of several by name it is that called "default"."""
    configs = _tokenizer_config(folder)
    source = configs.get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if path := published_file(folder, "chat_template.jinja"):
        source = _read_text(path, MAX_TEMPLATE_BYTES)
    if source is None:
        return None
    if not isinstance(source, str):
        raise UserError(f"{folder}: its chat_template is {source!r:.60}, expected a text: {FETCH_AGAIN}")
    return published_chat_template(source, configs, tokenizer)


def published_chat_template(source: str, tokens: Mapping[str, Any], tokenizer: PublishedTokenizer) -> JinjaChatTemplate:
    """The template of this text; `tokens` may name `bos_token` and others, as texts or as objects of `content`."""
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    special = {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}
    pieces = dict(enumerate(getattr(tokenizer, "pieces", ())))
    pieces |= {token.id: token.content for token in getattr(tokenizer, "added_tokens", ())}
    pieces |= {tokenizer.special.eos: special["eos_token"]} if "eos_token" in special else {}
    ends = (pieces.get(index) for index in tokenizer.special.end_ids)
    return JinjaChatTemplate(source, special, tuple(text for text in ends if text))


def start_of_chat(template: JinjaChatTemplate, tokenizer: PublishedTokenizer) -> PublishedTokenizer:
    """The tokenizer whose rows begin with the control token that the template writes first, if it has no BOS text.

    Rows of batches have a start in any case: so their ids are those of `apply_chat_template`.
    """
    if "bos_token" in template.special_tokens:
        return tokenizer
    encoder = DialogueEncoder(tokenizer, template)
    try:
        (prompt,) = encoder.encode_prompts([Dialogue((Turn("user", "a"),))])
    except InvalidRecord:
        return tokenizer
    first = int(prompt[1]) if len(prompt) > 1 else None
    if first not in encoder.control_ids:
        return tokenizer
    return replace(tokenizer, special=replace(tokenizer.special, start=first))
