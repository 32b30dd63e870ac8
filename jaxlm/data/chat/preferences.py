"""Readers of preferences: two answers to a prompt, or one with a judgment.

| reader            | a record                                                                                   |
|-------------------|--------------------------------------------------------------------------------------------|
| `PreferenceFile`  | `prompt`, `chosen`, `rejected`, texts or lists of messages; or `conversations` and messages |
| `JudgedFile`      | `prompt`, `completion`, `label`; or `messages`, `label`                                    |
| `PairPreferences` | a pair (prompt TAB chosen, rejected) of any other source                                   |
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxlm.data.chat.dialogue import InvalidRecord, Judged, Preference, Turn, build_prompt
from jaxlm.data.chat.instructions import read_turns
from jaxlm.data.chat.records import PairRecords, RecordFile
from jaxlm.data.files import ReadStats

LABELS = {True: True, "true": True, "1": True, False: False, "false": False, "0": False}
"""The labels of answers that are good or bad; 1 equals True, and texts have no case."""


@dataclass(frozen=True)
class PreferenceFile(RecordFile[Preference]):
    """Pairs of answers to one prompt; pairs of equal answers, or with an empty one, are left out and counted.

    The prompt is a text, a list of messages (`conversations` of ShareGPT too), or absent: it is then what both lists of
    messages have before their last one. Texts without a prompt are refused: two answers may begin alike by chance.
    """

    FIELDS: ClassVar[tuple[str, ...]] = (
        "prompt", "chosen", "rejected", "conversations", "system", "tools", "margin", "role", "content", "from", "value"
    )  # fmt: skip

    def _rows(self, record: Mapping[str, Any], stats: ReadStats) -> Iterator[Preference]:
        (chosen_turns, chosen), (rejected_turns, rejected) = (
            self._answer(record, name) for name in ("chosen", "rejected")
        )
        if chosen_turns != rejected_turns:
            raise InvalidRecord("the chosen and the rejected answer have different prompts")
        given = prompt_turns(self, record)
        spoken = [[turn for turn in turns if turn.role != "system"] for turns in (given, chosen_turns)]
        if given and chosen_turns and spoken[0] != spoken[1]:
            raise InvalidRecord("the prompt differs from the messages before the chosen answer")
        if not given and not chosen_turns:
            raise InvalidRecord(f"expected a prompt under 'prompt', found only {', '.join(map(repr, record))}")
        system = Turn("system", self._text(record, "system", ""))
        turns = [system, *(chosen_turns if len(chosen_turns) > len(given) else given)]
        prompt = build_prompt(turns if system.content else turns[1:], stats, self._tools(record), self.strict)
        margin = self._value(record, "margin") or 0.0
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
            raise InvalidRecord(f"the margin is {margin!r:.40}, expected a finite number")
        return make_preference(Preference(prompt, chosen, rejected, float(margin)), stats)

    def _answer(self, record: Mapping[str, Any], name: str) -> tuple[list[Turn], str]:
        """The turns before an answer, if it is a list of messages, and its text."""
        value = self._value(record, name)
        if isinstance(value, str):
            return [], value
        turns = read_turns([value] if isinstance(value, dict) else value, self.fields, name)
        if not turns or turns[-1].role != "assistant":
            raise InvalidRecord(f"{name!r} does not end with a message of the assistant")
        return turns[:-1], turns[-1].content


def prompt_turns(reader: RecordFile, record: Mapping[str, Any]) -> list[Turn]:
    """The turns of the field `prompt`, a text or messages, or of `conversations`; none if both are absent."""
    name = "prompt" if reader._value(record, "prompt") is not None else "conversations"
    value = reader._value(record, name)
    if value is None or isinstance(value, str):
        return [] if value is None else [Turn("user", value)]
    return read_turns(value, reader.fields, name)


def make_preference(preference: Preference, stats: ReadStats) -> Iterator[Preference]:
    """The preference, unless it teaches nothing, which is counted."""
    if "\0" in preference.chosen + preference.rejected:
        raise InvalidRecord("an answer has a NUL character, which is not text")
    if preference.chosen == preference.rejected:
        stats.note("with equal answers left out")
    elif not (preference.chosen.strip() and preference.rejected.strip()):
        stats.note("with an empty answer left out")
    else:
        yield preference


@dataclass(frozen=True)
class JudgedFile(RecordFile[Judged]):
    """Answers with a label: true or false, 1 or 0, as JSON values or texts. The last message is the answer."""

    FIELDS: ClassVar[tuple[str, ...]] = (
        "prompt", "completion", "messages", "label", "system", "tools", "role", "content", "from", "value",
        "conversations",
    )  # fmt: skip

    def _rows(self, record: Mapping[str, Any], stats: ReadStats) -> Iterator[Judged]:
        label = self._value(record, "label")
        key = label.strip().lower() if isinstance(label, str) else label
        if not isinstance(key, bool | int | str) or key not in LABELS:
            raise InvalidRecord(f"the label is {label!r:.40}, expected true or false")
        turns, completion = prompt_turns(self, record), self._value(record, "completion")
        if (messages := self._value(record, "messages")) is not None:
            turns = read_turns(messages, self.fields, "messages")
        elif isinstance(completion, str):
            turns.append(Turn("assistant", completion))
        else:
            turns += read_turns(completion, self.fields, "completion")
        if not turns or turns[-1].role != "assistant":
            raise InvalidRecord("the last message is not the assistant's: there is no answer to judge")
        if system := self._text(record, "system", ""):
            turns.insert(0, Turn("system", system))
        prompt, answer = build_prompt(turns[:-1], stats, self._tools(record), self.strict), turns[-1].content
        if "\0" in answer:
            raise InvalidRecord("the answer has a NUL character, which is not text")
        if answer.strip():
            yield Judged(prompt, answer, LABELS[key])
        else:
            stats.note("with an empty answer left out")


@dataclass(frozen=True)
class PairPreferences(PairRecords[Preference]):
    """Prompt, chosen and rejected answer in three columns: `PairPreferences(Tsv("pairs.tsv", (0, 1), 2))`."""

    ROWS: ClassVar[str] = "preferences"

    def _rows(self, left: str, right: str, stats: ReadStats) -> Iterator[Preference]:
        prompt, separator, chosen = left.rpartition("\t")
        if not separator:
            raise InvalidRecord("expected a prompt and a chosen answer with a TAB between them")
        return make_preference(Preference(build_prompt([Turn("user", prompt)], stats), chosen, right), stats)
