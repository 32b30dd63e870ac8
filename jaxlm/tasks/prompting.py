"""A task as prompts: an instruction, examples with their answers (shots), and a question that waits for its answer.

The shots of a test row are the first ones of an order of the training rows by hash of (seed, test row, training row).
So four shots are among eight, and they depend neither on the order of the data nor on the number of test rows.
"""

import itertools
import string
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from jaxlm.data.chat.dialogue import Dialogue, Turn
from jaxlm.errors import UserError

Fields = dict[str, str]


@dataclass(frozen=True)
class Prompted:
    """A task for a model that is not trained on it. Templates hold text and names of fields in braces, nothing else.

    Attributes:
      train, test: sources of pairs (the first text's parts between TABs, and the second text, are the `fields`), of
        dialogues ("source": all before the first answer, "target": that answer) or of mappings from names to texts.
      ask, answer: templates of the question and of what follows it.
      instruction: the text before the shots.
      choices: the values of the field `target`, or templates of them; (): the answer is free.
      delimiter: the text between the instruction, the shots and the question.
      stop, max_tokens: strings that end a generated answer, and its most tokens.
      balanced: the shots take the values of `target` in turn.
      shared_shots: all test rows have the same shots.
      shots_from: a field that the shots of a row have in common with it, such as its topic; "": all rows.
      repeats: equal rows, and shots with the question of the test row, are not left out.
    """

    train: Any
    test: Any
    ask: str = "{source}"
    answer: str = " {target}"
    instruction: str = ""
    choices: tuple[str, ...] = ()
    target: str = "target"
    fields: tuple[str, ...] = ("source", "target")
    delimiter: str = "\n\n"
    stop: tuple[str, ...] = ("\n",)
    max_tokens: int = 32
    balanced: bool = False
    shared_shots: bool = False
    shots_from: str = ""
    repeats: bool = False

    def __post_init__(self) -> None:
        for template in (self.ask, self.answer, *self.choices):
            try:
                parts = list(string.Formatter().parse(template))
            except ValueError as error:
                raise UserError(f"the template {template!r}: {error} (a brace of the text is doubled)") from None
            if wrong := [name for _, name, spec, change in parts if spec or change or not (name or "x").isidentifier()]:
                raise UserError(f"the template {template!r}: {wrong[0]!r} is not the name of a field")
        if f"{{{self.target}}}" not in self.answer:
            raise UserError(f"answer={self.answer!r}: expected {{{self.target}}} in it, the field that `target` names")
        if len(self.choices) == 1 or len(set(filter(str.strip, self.choices))) < len(self.choices):
            raise UserError(f"choices={self.choices}: expected none, or several that differ and are not blank")

    def rows(self, source: Iterable[Any]) -> list[Fields]:
        """The rows of a source by their fields. Raises UserError for a pair with another number of parts."""
        return list(map(self._row, source))

    def _row(self, row: Any) -> Fields:
        if isinstance(row, Mapping):
            return {name: str(value) for name, value in row.items()}
        if isinstance(row, Dialogue):
            return {"source": row.text, "target": next((t.content for t in row.turns if t.role == "assistant"), "")}
        parts = (*row[0].split("\t"), row[1])
        if len(parts) != len(self.fields):
            raise UserError(f"the row {row!r:.60} has {len(parts)} texts, expected the fields {', '.join(self.fields)}")
        return dict(zip(self.fields, parts, strict=True))

    def fill(self, template: str, row: Fields) -> str:
        """The text of a template. Raises UserError for a field that the row lacks."""
        try:
            return template.format_map(row)
        except KeyError as error:
            raise UserError(f"the template {template!r}: no field {error}, only {', '.join(row)}") from None

    def candidates(self, row: Fields) -> tuple[tuple[str, ...], int]:
        """The texts that may follow the question, and the index of the true one, alone without `choices`.

        Raises UserError if that is none of the choices.
        """
        gold = self.fill(f"{{{self.target}}}", row)
        texts = [self.fill(choice, row) for choice in self.choices] or [gold]
        if gold not in texts:
            raise UserError(f"{self.target}={gold!r:.60}: expected one of the choices {', '.join(texts)}")
        return tuple(self.fill(self.answer, row | {self.target: text}) for text in texts), texts.index(gold)

    def dialogue(self, row: Fields, shots: Sequence[Fields], chat: bool = False) -> tuple[Dialogue, str]:
        """The prompt as one text, and the white space that it ends with, which is a part of what follows.

        chat: the instruction is the system turn, and each shot a turn of the user and an answer.
        """
        pairs = [(self.fill(self.ask, shot), self.fill(self.answer, shot)) for shot in shots]
        ask = self.fill(self.ask, row)
        instruction = [self.instruction] if self.instruction else []
        if not chat:
            text = self.delimiter.join([*instruction, *map("".join, pairs), ask])
            return Dialogue((Turn("user", text.rstrip()),)), text[len(text.rstrip()) :]
        turns = [Turn("system", text) for text in instruction]
        for question, answer in pairs:
            turns += [Turn("user", question.strip()), Turn("assistant", answer.strip())]
        return Dialogue((*turns, Turn("user", ask.strip()))), ""

    def digest(self, row: Fields) -> int:
        """64 bits of the question and the answer of a row."""
        return hash_text(self.fill(f"{self.ask}\0{self.answer}", row))


class ShotOrder:
    """The training rows in the orders in which they become the shots of test rows."""

    def __init__(self, task: Prompted, rows: Iterable[Fields]):
        self.task = task
        self._groups: defaultdict[str, list[tuple[str, str, Fields]]] = defaultdict(list)
        numbers: Any = defaultdict(itertools.count)  # equal rows are numbered, in any order
        for row in rows:
            digest = task.digest(row)
            number = next(numbers[digest])
            if task.repeats or not number:
                self._groups[self._group(row)].append((f"{digest} {number}", task.fill(task.ask, row), row))

    def _group(self, row: Fields) -> str:
        return self.task.fill(f"{{{self.task.shots_from}}}", row) if self.task.shots_from else ""

    def shots(self, row: Fields, count: int, seed: int) -> list[Fields]:
        """The shots of a test row. Raises UserError if there are too few training rows."""
        task, question = self.task, self.task.fill(self.task.ask, row)
        entries = [each for each in self._groups[self._group(row)] if task.repeats or each[1] != question]
        if count > len(entries):
            where = f"of its {task.shots_from}" if task.shots_from else "in the training part"
            raise UserError(f"{count} shots: a question has {len(entries)} rows {where}: ask for fewer shots")
        start = f"{seed} {'' if task.shared_shots else task.digest(row)}"
        order = [row for _, _, row in sorted(entries, key=lambda entry: hash_text(f"{start} {entry[0]}"))]
        if task.balanced:
            ranks: Any = defaultdict(itertools.count)
            order = [
                row for _, row in sorted(((next(ranks[row[task.target]]), row) for row in order), key=lambda x: x[0])
            ]
        return order[:count]


def hash_text(text: str) -> int:
    """64 bits of a text, the same on every machine."""
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
