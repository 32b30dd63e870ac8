"""The task of an imported encoder that has not been fine-tuned: it gives vectors and attention, no answers."""

from dataclasses import dataclass
from typing import Any

from jaxlm.errors import UserError
from jaxlm.tasks.base import Task


@dataclass(frozen=True)
class NoTask(Task):
    """The task of a model that only reads, as an imported BERT: `embed` and `train --finetuning.init` have a
    use for it.
    """

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise UserError(
            "this workdir holds a model that reads and was given no task: `jaxlm embed` gives its vectors, and "
            "`jaxlm train EXPERIMENT --finetuning.init` starts from it"
        )

    check = texts = describe = count = encode_train = validate = evaluate = show_examples = predict = _refuse
