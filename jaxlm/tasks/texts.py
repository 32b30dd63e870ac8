"""What the tasks that learn from plain texts share: their splits by name."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxlm.data.plain import TextSource
from jaxlm.errors import UserError
from jaxlm.tasks.task import Task


@dataclass(frozen=True)
class TextTask(Task):
    """Base of the tasks whose data are texts.

    Attributes:
      train, valid, test: where the texts are; `more` holds further test sets by name.
    """

    train: TextSource
    valid: TextSource
    test: TextSource
    more: dict[str, TextSource] = field(default_factory=dict)

    def check(self) -> None:
        """Reads the validation and test texts once."""
        for texts in (self.valid, self.test):
            texts.check()

    def texts(self) -> Iterator[str]:
        """The training texts."""
        return iter(self.train)

    def split(self, name: str) -> TextSource:
        """The texts of a split. Raises UserError with the names that exist."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test, **self.more}
        if name not in splits:
            raise UserError(f"no split {name!r}; this experiment has {', '.join(splits)}")
        return splits[name]

    def describe(self, split: str = "train") -> str:
        """Where the texts of a split are."""
        return self.split(split).describe()

    def count(self, split: str) -> int:
        """The texts of a split."""
        return sum(1 for _ in self.split(split))
