"""The task of an imported encoder before fine-tuning: it gives vectors and attention maps, no answers."""

from dataclasses import dataclass
from typing import Any

from jaxlm.errors import UserError
from jaxlm.tasks.base import Task


@dataclass(frozen=True)
class NoTask(Task):
    """No data and no answers: only `embed`, `report` and `train --finetuning.init` can use the workdir."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise UserError(
            "this workdir holds an encoder without a task: `jaxlm embed` gives its vectors, and "
            "`jaxlm train EXPERIMENT --finetuning.init` starts from it"
        )

    check = texts = split = encode_train = validate = evaluate = show_examples = predict = _refuse
