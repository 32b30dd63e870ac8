"""The parameters of a model: no other variables of Flax, which a run would lose."""

import flax.linen as nn
import pytest

from jaxlm.errors import UserError
from jaxlm.models.properties import abstract_params


class Normed(nn.Module):
    """nn.BatchNorm has running means."""

    @nn.compact
    def __call__(self, batch):
        return nn.BatchNorm(use_running_average=False)(nn.Embed(8, 4)(batch.target_BT))


class Empty(nn.Module):
    def __call__(self, batch):
        return batch.target_BT


@pytest.mark.parametrize(("model", "variables"), [(Normed(), "batch_stats, params"), (Empty(), "of no kind")])
def test_other_variables_are_refused_by_name(model, variables):
    with pytest.raises(UserError, match=f"{type(model).__name__} has the variables {variables}, expected params alone"):
        abstract_params(model)
