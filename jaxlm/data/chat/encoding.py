"""Dialogues as rows of ids with a loss mask: the same ids in training, in scoring and as the prompt of generation.

The ids of a prompt are those of its text alone. The ids of an answer are those that follow them in the encoding of both
together, or of the answer alone if the prompt's ids are not a prefix of that encoding. Control tokens come from the
template only: a text that holds one is encoded as its characters.
"""

import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby

import numpy as np

from jaxlm.data.chat.dialogue import Dialogue, InvalidRecord, Turn
from jaxlm.data.chat.jinja_template import JinjaChatTemplate
from jaxlm.data.chat.template import ChatTemplate, Piece
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Ragged
from jaxlm.data.storage.token_cache import id_dtype
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.pretrained import FastTokenizer, PretrainedSentencePiece
from jaxlm.errors import UserError

ENCODED_ALONE = "answers whose first token would join the prompt's last one, encoded alone"

CONTROL_AS_TEXT = "texts with a control token, kept as its characters"

MARK = "\ue0f0"


@dataclass(frozen=True)
class EncodedDialogue:
    """A row: the ids that follow the start of a row, without a last EOS, and 1 or 0 for each of them and for that EOS.

    Without a trained answer the mask is 0 everywhere.
    """

    ids: np.ndarray
    loss_mask: np.ndarray


@dataclass(frozen=True)
class ChatFormat:
    """The form in which `generate` asks: each prompt is a turn of the user, perhaps after a system turn and others."""

    template: ChatTemplate | JinjaChatTemplate
    system: str = ""
    history: tuple[Turn, ...] = ()

    def dialogue(self, prompt: str) -> Dialogue:
        """The dialogue that waits for an answer."""
        system = (Turn("system", self.system),) if self.system else ()
        return Dialogue((*system, *self.history, Turn("user", prompt)))


_Span = tuple[bool, list[Piece]]
"""(False, parts that are encoded together, one after the other), or (True, texts without control tokens, and EOS)."""


@dataclass(frozen=True, eq=False)
class DialogueEncoder:
    """A chat template and the tokenizer of its ids. Raises UserError if the tokenizer lacks its control tokens."""

    tokenizer: Tokenizer
    template: ChatTemplate | JinjaChatTemplate

    def __post_init__(self) -> None:
        if missing := [token for token in self.template.control_tokens if self._token_id(token) is None]:
            raise UserError(
                f"the tokenizer has no single token for {', '.join(missing)} of the chat template: choose a template "
                "without control tokens (PLAIN, ALPACA), or train a tokenizer with them (user_defined_symbols)"
            )

    def _token_id(self, token: str) -> int | None:
        """The id of a text that is one token; SentencePiece may put a space before it."""
        ids = self.tokenizer.encode([token + token])[0].tolist()
        is_one = len(ids) in (2, 3) and ids[-1] == ids[-2] != self.tokenizer.special.unk
        return ids[-1] if is_one else None

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids that only the template may give: control tokens, and the tokenizer's special ids but the unknown."""
        ids = set(getattr(self.tokenizer, "control_ids", self.tokenizer.special.hidden))
        ids |= {token.id for token in getattr(self.tokenizer, "added_tokens", ()) if token.special}
        named = (self._token_id(token) for token in self.template.control_tokens)
        return frozenset(ids).union(index for index in named if index is not None) - {self.tokenizer.special.unk}

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: those of the tokenizer, and the template's own."""
        ends = (self._token_id(token) for token in self.template.end_tokens)
        return tuple(dict.fromkeys((*self.tokenizer.special.end_ids, *(index for index in ends if index is not None))))

    def encode(
        self, dialogues: Sequence[Dialogue], stats: ReadStats | None = None, first: int = 1
    ) -> list[EncodedDialogue]:
        """The row of each dialogue up to its last trained answer; `stats` counts what was done to them.

        Raises InvalidRecord, with the number of the dialogue from `first` on, if the template cannot render it.
        """
        stats = ReadStats() if stats is None else stats
        rows = []
        for ids, mask in self._encode(dialogues, False, stats, first):
            trained = np.flatnonzero(mask)
            size = int(trained[-1]) + 1 if len(trained) else len(ids)
            ids, mask = self._without_start(ids[:size], mask[:size])
            ends = bool(size and len(ids) and mask[-1] and ids[-1] == self.tokenizer.special.eos)
            ids = ids[: len(ids) - ends]
            rows.append(EncodedDialogue(ids, np.append(mask[: len(ids)], ends).astype(np.uint8)))
        return rows

    def encode_prompts(self, dialogues: Sequence[Dialogue]) -> list[np.ndarray]:
        """The ids after which the assistant's next answer begins, with the id that starts a row."""
        start = np.array([self.tokenizer.special.start], np.int32)
        encoded = self._encode(dialogues, True, ReadStats())
        return [np.concatenate([start, self._without_start(ids, mask)[0]]) for ids, mask in encoded]

    def _without_start(self, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Batches put the start of a row before it: one that the template writes is not doubled."""
        doubled = int(len(ids) > 0 and ids[0] == self.tokenizer.special.start)
        return ids[doubled:], mask[doubled:]

    def _encode(
        self, dialogues: Sequence[Dialogue], add_generation_prompt: bool, stats: ReadStats, first: int = 1
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The ids of each whole dialogue, and which of them are trained."""
        unsafe, rows = self._control_contents(dialogues), []
        for number, dialogue in enumerate(dialogues, start=first):
            try:
                rows.append(self._spans(dialogue, unsafe, add_generation_prompt, stats))
            except InvalidRecord as error:
                raise InvalidRecord(f"dialogue {number}: {error}") from None
        joined = [parts for row in rows for is_plain, parts in row if not is_plain]
        texts = [text for parts in joined for text in accumulate(part.text for part in parts)]
        joint = iter(self.tokenizer.encode(texts) if texts else ())
        for row in rows:
            parts = [part for span in row for part in self._encode_span(span, joint, stats)]
            ids = [np.zeros(0, np.int32), *(ids for ids, _ in parts)]
            mask = [np.full(len(ids), trained) for ids, trained in parts]
            yield np.concatenate(ids).astype(np.int32), np.concatenate([np.zeros(0, bool), *mask])

    def _control_contents(self, dialogues: Sequence[Dialogue]) -> frozenset[str]:
        """The contents of turns, and tools, that would give a control id or hold the mark that takes their place."""
        contents = sorted({turn.content for d in dialogues for turn in d.turns} | {d.tools for d in dialogues})
        marked = {content for content in contents if MARK in content}
        published = isinstance(self.tokenizer, FastTokenizer | PretrainedSentencePiece)
        if not contents or not (published or self.template.control_tokens):
            return frozenset(marked)
        control = np.array(sorted(self.control_ids))
        parsed = zip(contents, self.tokenizer.encode(contents), strict=True)
        return frozenset(marked.union(content for content, ids in parsed if np.isin(ids, control).any()))

    def _spans(
        self, dialogue: Dialogue, unsafe: frozenset[str], add_generation_prompt: bool, stats: ReadStats
    ) -> list[_Span]:
        """The pieces, cut at EOS and around contents with a control token, for which the template gets a mark."""
        if dialogue.tools in unsafe:
            raise InvalidRecord("the tools hold a control token of the tokenizer: remove it from their texts")
        kept: list[str] = []
        turns = list(dialogue.turns)
        for index, turn in enumerate(turns):
            if turn.content in unsafe:
                turns[index] = replace(turn, content=f"{MARK}{len(kept)}{MARK}")
                kept.append(turn.content)
                stats.note(CONTROL_AS_TEXT)
        pieces: list[tuple[bool, Piece]] = []
        for piece in self.template.pieces(replace(dialogue, turns=tuple(turns)), add_generation_prompt):
            for index, text in enumerate(re.split(f"{MARK}([0-9]+){MARK}", piece.text) if kept else [piece.text]):
                if index % 2 or piece.is_eos:
                    pieces.append((True, replace(piece, text=kept[int(text)] if index % 2 else "")))
                elif text:
                    pieces.append((False, replace(piece, text=text)))
        spans = []
        for is_plain, group in groupby(pieces, key=lambda entry: entry[0]):
            parts = [piece for _, piece in group]
            if not is_plain:  # neighbors that are alike are one part
                alike = groupby(parts, key=lambda piece: (piece.answer, piece.trained))
                parts = [Piece("".join(piece.text for piece in same), *flags) for flags, same in alike]
            spans.append((is_plain, parts))
        return spans

    def _encode_span(
        self, span: _Span, joint: Iterator[np.ndarray], stats: ReadStats
    ) -> Iterator[tuple[np.ndarray, bool]]:
        """(ids, trained) of each part of a span; `joint` gives the ids of its beginnings."""
        is_plain, parts = span
        before = np.zeros(0, np.int32)
        for part in parts:
            if is_plain:
                eos = np.array([self.tokenizer.special.eos])
                yield eos if part.is_eos else self._encode_plain(part.text), part.trained
                continue
            whole = next(joint)
            if np.array_equal(whole[: len(before)], before):
                new = whole[len(before) :]
            else:
                (new,) = self.tokenizer.encode([part.text])
                if part.answer:
                    stats.note(ENCODED_ALONE)
            before = np.concatenate([before, new])
            yield new, part.trained

    @cached_property
    def _plain_tokenizer(self) -> Tokenizer | None:
        """A published tokenizer that takes control tokens as their characters; None for another one."""
        if isinstance(self.tokenizer, PretrainedSentencePiece):
            return replace(self.tokenizer, added_tokens=())
        if not isinstance(self.tokenizer, FastTokenizer):
            return None
        plain = replace(self.tokenizer)
        plain._tokenizer.encode_special_tokens = True
        return plain

    def _encode_plain(self, text: str) -> np.ndarray:
        """The ids of a text in which nothing is a control token."""
        if self._plain_tokenizer is not None:
            return self._plain_tokenizer.encode([text])[0]
        parts = [text]  # a token that is cut after its first character is not found
        for token in self.template.control_tokens:
            parts = [half for part in parts for half in part.replace(token, f"{token[0]}\0{token[1:]}").split("\0")]
        line_break, first, *rest = self.tokenizer.encode(["\n", parts[0], *("\n" + part for part in parts[1:])])
        return np.concatenate([first, *(ids[len(line_break) :] for ids in rest)])  # without the space of SentencePiece


def dialogue_columns(rows: Sequence[EncodedDialogue], tokenizer: Tokenizer) -> dict[str, Ragged]:
    """The columns "target" and "loss_mask" of these rows."""
    target = Ragged.from_rows([row.ids for row in rows], id_dtype(tokenizer))
    return {"target": target, "loss_mask": Ragged.from_rows([row.loss_mask for row in rows], np.uint8)}


def cut_prompt(encoder: DialogueEncoder, dialogue: Dialogue, max_tokens: int) -> Dialogue:
    """The dialogue without the beginning of its prompt, so that its row has at most `max_tokens` tokens with EOS.

    Whole turns go first, then the beginning of the last question. The system turn and the last answer stay; if they are
    too long by themselves, so is the result.
    """

    def fits(turns: Sequence[Turn]) -> bool:
        (row,) = encoder.encode([replace(dialogue, turns=tuple(turns))])
        return len(row.loss_mask) <= max_tokens

    end = 1 + max(index for index, turn in enumerate(dialogue.turns) if turn.is_trained_answer)
    turns = list(dialogue.turns[:end])
    first = int(turns[0].role == "system")
    users = [index for index, turn in enumerate(turns) if turn.role == "user"]
    begin = next((index for index in users if fits(turns[:first] + turns[index:])), users[-1] if users else first)
    turns[first:begin] = []
    content = turns[first].content
    if fits(turns) or turns[first].role != "user":
        return replace(dialogue, turns=tuple(turns))

    def ending(size: int) -> list[Turn]:
        return [*turns[:first], replace(turns[first], content=content[len(content) - size :]), *turns[first + 1 :]]

    size = max(bisect(range(len(content)), False, key=lambda size: not fits(ending(size))) - 1, 1)
    return replace(dialogue, turns=tuple(ending(size)))
