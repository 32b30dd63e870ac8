"""Dialogues, and answers to them that are preferred or judged: what all readers of chat data give."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from jaxlm.data.files import ReadStats
from jaxlm.errors import UserError

TURN_ROLES = ("system", "user", "assistant", "tool")


class InvalidRecord(UserError):
    """The fault of a record: the reader adds its place."""


@dataclass(frozen=True)
class Turn:
    """One message of a dialogue.

    Attributes:
      role: one of `TURN_ROLES`; a "tool" turn is the result of a call that the assistant made.
      trained: whether the loss covers this answer; of other turns it never does.
    """

    role: str
    content: str
    trained: bool = True

    @property
    def is_trained_answer(self) -> bool:
        """True for an answer that the loss covers."""
        return self.role == "assistant" and self.trained


@dataclass(frozen=True)
class Dialogue:
    """Turns in their order: at most one system turn, which is the first.

    Attributes:
      tools: the functions that the assistant may call, as a JSON text; "" for none.
    """

    turns: tuple[Turn, ...]
    tools: str = ""

    @property
    def text(self) -> str:
        """All turns up to the first answer, by which `HashSplit` chooses the split."""
        answers = [index for index, turn in enumerate(self.turns) if turn.role == "assistant"]
        return "\n".join(turn.content for turn in self.turns[: answers[0] if answers else None])

    @property
    def prompt(self) -> "Dialogue":
        """The dialogue before its first trained answer."""
        index = next((i for i, turn in enumerate(self.turns) if turn.is_trained_answer), len(self.turns))
        return replace(self, turns=self.turns[:index])

    @property
    def answer(self) -> str:
        """The first trained answer; "" for a dialogue that waits for it."""
        return next((turn.content for turn in self.turns if turn.is_trained_answer), "")

    def with_answer(self, answer: str) -> "Dialogue":
        """The dialogue with one more turn of the assistant, the only one that the loss covers."""
        before = tuple(replace(turn, trained=False) for turn in self.turns)
        return replace(self, turns=(*before, Turn("assistant", answer)))


@dataclass(frozen=True)
class _Prompted:
    """Base of answers to a prompt, whose last turn is not the assistant's."""

    prompt: Dialogue

    @property
    def text(self) -> str:
        """The text of the prompt, by which `HashSplit` chooses the split."""
        return self.prompt.text


@dataclass(frozen=True)
class Preference(_Prompted):
    """Two answers to the same prompt.

    Attributes:
      margin: how much better the chosen answer is, for a reward model; finite.
    """

    chosen: str
    rejected: str
    margin: float = 0.0


@dataclass(frozen=True)
class Judged(_Prompted):
    """An answer to a prompt with a judgment of its own (KTO): desirable or not."""

    answer: str
    good: bool


def build_prompt(turns: Iterable[Turn], stats: ReadStats, tools: str = "", strict: bool = False) -> Dialogue:
    """A dialogue that waits for an answer. Raises InvalidRecord for one that has no question."""
    dialogue = _build(turns, stats, tools, strict)
    last = dialogue.turns[-1].role if dialogue.turns else "nothing"
    if last not in ("user", "tool"):
        raise InvalidRecord(f"the prompt ends with {last}, expected a turn of the user or of a tool")
    return dialogue


def build_dialogue(
    turns: Iterable[Turn], stats: ReadStats, tools: str = "", strict: bool = False
) -> Iterator[Dialogue]:
    """A dialogue to learn from; none, which `stats` counts, if an answer is empty or none is trained.

    Raises InvalidRecord for an unknown role, a system turn that is not the first, a dialogue without an answer and NUL
    characters. Two turns of one role in a row are joined by a blank line and counted; if `strict` they are a fault.
    """
    dialogue = _build(turns, stats, tools, strict)
    answers = [turn for turn in dialogue.turns if turn.role == "assistant"]
    if not answers:
        raise InvalidRecord("the dialogue has no turn of the assistant: there is nothing to learn from")
    if not all(turn.content.strip() for turn in answers):
        stats.note("with an empty answer left out")
    elif not any(turn.trained for turn in answers):
        stats.note("without a trained answer left out")
    else:
        yield dialogue


def _build(turns: Iterable[Turn], stats: ReadStats, tools: str, strict: bool) -> Dialogue:
    joined: list[Turn] = []
    for number, turn in enumerate(turns, start=1):
        if turn.role not in TURN_ROLES:
            raise InvalidRecord(f"turn {number} has the unknown role {turn.role!r}, expected {', '.join(TURN_ROLES)}")
        if "\0" in turn.content:
            raise InvalidRecord(f"turn {number} has a NUL character, which is not text")
        if turn.role == "system" and joined:
            what = "is a second system turn" if joined[0].role == "system" else "is a system turn"
            raise InvalidRecord(f"turn {number} {what}: expected one at most, and at the beginning")
        if not (joined and joined[-1].role == turn.role):
            joined.append(turn)
            continue
        if strict:
            raise InvalidRecord(f"turns {number - 1} and {number} are both of the {turn.role}")
        stats.note("turns joined to the one before them, of the same role")
        text = f"{joined[-1].content}\n\n{turn.content}"
        joined[-1] = Turn(turn.role, text, joined[-1].trained and turn.trained)
    if joined and joined[0].role == "system" and not joined[0].content.strip():
        del joined[0]
    return Dialogue(tuple(joined), tools)
