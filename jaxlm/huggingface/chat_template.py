"""The chat template of a published model: `chat_template.jinja`, or an entry of `tokenizer_config.json`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlm.data.chat.dialogue import Dialogue, InvalidRecord, Turn
from jaxlm.data.chat.encoding import DialogueEncoder
from jaxlm.data.chat.jinja_template import MAX_TEMPLATE_BYTES, JinjaChatTemplate
from jaxlm.data.tokenizers.pretrained import FastTokenizer, PretrainedSentencePiece
from jaxlm.errors import UserError
from jaxlm.filesystem import read_bounded
from jaxlm.huggingface.checkpoint_folder import FETCH_AGAIN, published_file
from jaxlm.json_files import read_json

PublishedTokenizer = FastTokenizer | PretrainedSentencePiece


def read_chat_template(folder: Path, tokenizer: PublishedTokenizer) -> JinjaChatTemplate | None:
    """The template of a folder, or None. Of several by name it is that called "default"."""
    configs: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        configs |= read_json(path, dict, FETCH_AGAIN) if (path := published_file(folder, name)) else {}
    source = configs.get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if path := published_file(folder, "chat_template.jinja"):
        try:
            source = read_bounded(path, MAX_TEMPLATE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 (byte {error.start}): {FETCH_AGAIN}") from None
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
