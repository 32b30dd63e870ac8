"""Readers of instructions and conversations: every row is a `Dialogue`.

| reader               | a record                                                              |
|----------------------|-----------------------------------------------------------------------|
| `AlpacaFile`         | `instruction`, `input`, `output`; perhaps `system`                    |
| `SelfInstructFile`   | `instruction`, `instances` of `input` and `output`                    |
| `ShareGptFile`       | `conversations` of `from` and `value`; perhaps `system`, `tools`      |
| `MessagesFile`       | `messages` of `role` and `content`; perhaps `tools`                   |
| `QuestionFile`       | `question`, `answer` with a final answer after "####" (GSM8K)         |
| `PairDialogues`      | a pair of any other source: the question and its answer               |
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxlm.data.chat.dialogue import Dialogue, InvalidRecord, Turn, build_dialogue
from jaxlm.data.chat.records import PairRecords, RecordFile
from jaxlm.data.files import ReadStats

NO_INPUT = ("noinput", "no input", "no input.", "<noinput>", "<no input>", "n/a")
"""Inputs that mean that there is none, compared without case."""

SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "function_call": "assistant", "observation": "tool", "tool": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class AlpacaFile(RecordFile[Dialogue]):
    """Instructions with an optional input (Taori et al. 2023): the user says both, with a blank line between them.

    Attributes:
      no_input: inputs that count as empty, compared without case; () takes every input as it is.
    """

    no_input: tuple[str, ...] = NO_INPUT

    FIELDS: ClassVar[tuple[str, ...]] = ("instruction", "input", "output", "system")

    def _rows(self, record: Mapping[str, Any], stats: ReadStats) -> Iterator[Dialogue]:
        question = _instruct(self._text(record, "instruction"), self._text(record, "input", ""), self.no_input, stats)
        turns = Turn("system", self._text(record, "system", "")), Turn("user", question)
        return build_dialogue([*turns, Turn("assistant", self._text(record, "output"))], stats, strict=self.strict)


@dataclass(frozen=True)
class SelfInstructFile(RecordFile[Dialogue]):
    """Tasks with instances (Wang et al. 2023): a dialogue for each instance."""

    no_input: tuple[str, ...] = NO_INPUT

    FIELDS: ClassVar[tuple[str, ...]] = ("instruction", "instances", "input", "output")

    def _rows(self, record: Mapping[str, Any], stats: ReadStats) -> Iterator[Dialogue]:
        instruction, instances = self._text(record, "instruction"), self._value(record, "instances")
        if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
            raise InvalidRecord(f"expected a list of objects under 'instances', found {instances!r:.60}")
        for instance in instances:
            question = _instruct(instruction, self._text(instance, "input", ""), self.no_input, stats)
            turns = Turn("user", question), Turn("assistant", self._text(instance, "output"))
            yield from build_dialogue(turns, stats, strict=self.strict)


def _instruct(instruction: str, given: str, no_input: tuple[str, ...], stats: ReadStats) -> str:
    if given.strip().lower() in no_input:
        stats.note("with an input that means none")
        given = ""
    return f"{instruction}\n\n{given}" if given.strip() else instruction


@dataclass(frozen=True)
class ConversationFile(RecordFile[Dialogue]):
    """Base of the readers of whole conversations. A call of a function is an answer.

    Attributes:
      last_only: the loss covers only the last answer of a conversation.
    """

    last_only: bool = False

    def _rows(self, record: Mapping[str, Any], stats: ReadStats) -> Iterator[Dialogue]:
        system, name = self._text(record, "system", ""), self.FIELDS[0]
        turns = [Turn("system", system)] if system.strip() else []
        turns += read_turns(self._value(record, name), self.fields, name)
        last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=0)
        if self.last_only:
            turns = [replace(turn, trained=turn.trained and index == last) for index, turn in enumerate(turns)]
        return build_dialogue(turns, stats, self._tools(record), self.strict)


@dataclass(frozen=True)
class ShareGptFile(ConversationFile):
    """Conversations of human and gpt, and of function_call and observation."""

    FIELDS: ClassVar[tuple[str, ...]] = ("conversations", "system", "tools", "from", "value")


@dataclass(frozen=True)
class MessagesFile(ConversationFile):
    """Messages of role and content, as in the chat interfaces of OpenAI and Hugging Face.

    All answers are trained; `"weight": 0` or `"trained": false` in a message leaves it out of the loss.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("messages", "system", "tools", "role", "content")


def read_turns(messages: Any, names: Mapping[str, str], where: str) -> list[Turn]:
    """The turns of a list of messages: objects of `role` and `content`, or of `from` and `value`, renamed by `names`.

    A content is a text, or a list of texts and of parts of the type "text". Raises InvalidRecord.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InvalidRecord(f"expected a list of objects under {where!r}, found {messages!r:.60}")
    turns: list[Turn] = []
    for message in messages:
        role = message.get(names.get("role", "role"), message.get(names.get("from", "from")))
        content = message.get(names.get("content", "content"), message.get(names.get("value", "value")))
        weight = message.get("weight", 1)
        if weight not in (0, 1):
            raise InvalidRecord(f"a message has the weight {weight!r}, expected 0 or 1")
        known = SHAREGPT_ROLES.get(role) if isinstance(role, str) else None
        if known is None:
            raise InvalidRecord(f"turn {len(turns) + 1} has the unknown role {role!r}, expected one of "
                                f"{', '.join(SHAREGPT_ROLES)}")  # fmt: skip
        calls = [
            call.get("function", call) if isinstance(call, dict) else call for call in message.get("tool_calls") or ()
        ]
        text = _content(content) + "\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
        turns.append(Turn(known, text, trained=bool(weight) and message.get("trained", True) is not False))
    return turns


def _content(content: Any) -> str:
    parts = content if isinstance(content, list) else [] if content is None else [content]
    texts = []
    for part in parts:
        if isinstance(part, dict) and part.get("type") == "text":
            part = part.get("text")
        if not isinstance(part, str):
            raise InvalidRecord(f"a content holds {part!r:.60}, expected a text or parts of the type 'text'")
        texts.append(part)
    return "".join(texts)


@dataclass(frozen=True)
class QuestionFile(RecordFile[Dialogue]):
    """Questions with a worked answer (GSM8K, Cobbe et al. 2021).

    Attributes:
      drop_calculations: leave out the calculator's annotations such as `<<48/2=24>>`.
    """

    drop_calculations: bool = False

    FIELDS: ClassVar[tuple[str, ...]] = ("question", "answer")

    def _rows(self, record: Mapping[str, Any], stats: ReadStats) -> Iterator[Dialogue]:
        answer = self._text(record, "answer")
        answer = re.sub("<<[^<>]*>>", "", answer) if self.drop_calculations else answer
        turns = Turn("user", self._text(record, "question")), Turn("assistant", answer)
        return build_dialogue(turns, stats, strict=self.strict)


@dataclass(frozen=True)
class PairDialogues(PairRecords[Dialogue]):
    """The pairs of any source as dialogues of two turns: `PairDialogues(Tsv("answers.tsv", 0, 1))`.

    Attributes:
      system: the system turn of all of them; "" for none.
    """

    system: str = ""

    ROWS: ClassVar[str] = "dialogues"

    def _rows(self, left: str, right: str, stats: ReadStats) -> Iterator[Dialogue]:
        return build_dialogue((Turn("system", self.system), Turn("user", left), Turn("assistant", right)), stats)
