"""The losses of rewards against TRL 1.16 on tiny random models: loss and two gradients."""

import jax
import numpy as np
import pytest
from references.trl_models import ARGUMENTS, ROWS, VOCAB, compare, fresh, tiny_models, torch

from jaxlm.decode.sampling import Sampler
from jaxlm.huggingface.convert import load_pretrained
from jaxlm.objectives.policy_gradient import PolicyGradient, answer_batch
from jaxlm.types import Batch

datasets = pytest.importorskip("datasets")
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_models(tmp_path_factory)


REWARDS = {
    **{kind: (PolicyGradient(kind=kind, num_samples=4, max_tokens=6, kl=0.3), {"loss_type": kind, "beta": 0.3})
       for kind in ("grpo", "dapo", "dr_grpo")},
    "grpo-k3": (
        PolicyGradient(kind="grpo", num_samples=4, max_tokens=6, kl=0.3, kappa="k3", epsilon=0.1, epsilon_high=0.3),
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False, "epsilon": 0.1, "epsilon_high": 0.3},
    ),
    "rloo": (PolicyGradient(num_samples=4, max_tokens=6, kl=0.3, sampler=Sampler(0.8)),
             {"beta": 0.3, "temperature": 0.8}),
}  # fmt: skip


@pytest.mark.parametrize("name", REWARDS)
def test_rewards(tiny, name):
    """TRL takes advantages: they are ours, whose formulas NumPy holds. Old log-probabilities are near the policy's."""
    objective, options = REWARDS[name]
    is_rloo, rng = objective.of_answers, np.random.default_rng(0)
    config, trainer_class = (RLOOConfig, RLOOTrainer) if is_rloo else (GRPOConfig, GRPOTrainer)
    arguments = config(output_dir=str(tiny.folder), num_generations=4, max_completion_length=6, **(ARGUMENTS | options))
    prompts = datasets.Dataset.from_list([{"prompt": "<s> w4 w5"}] * ROWS)
    trainer = trainer_class(
        str(tiny.policy), lambda completions, **_: [0.0] * len(completions), arguments, train_dataset=prompts,
        processing_class=tiny.tokenizer,
    )  # fmt: skip
    trainer.model.load_state_dict(fresh(tiny).state_dict())
    trainer.model.eval()
    model, params, _ = load_pretrained(tiny.policy)
    prompt_valid = np.array([[1, 1, 1], [1, 1, 0]], bool)
    prompts = Batch(target_BT=np.array([[2, 5, 6], [2, 7, 0]]), target_valid_BT=prompt_valid)
    length_R, tokens_RL = rng.integers(2, 7, 8), rng.integers(4, VOCAB, (8, 6))
    batch = answer_batch(prompts, tokens_RL, length_R).replace(value_B=rng.normal(size=8).astype(np.float32))
    log_probs = jax.jit(lambda params, batch: objective.log_probs(model, params, batch)[0])
    own, reference = (np.asarray(log_probs(p, batch)) for p in (params, load_pretrained(tiny.reference)[1]))
    old = np.where(batch.loss_mask_BT, own + rng.normal(0, 0.2, own.shape), 0).astype(np.float32)
    batch = batch.replace(old_logprob_BT=old, reference_logprob_BT=reference)
    prepared = objective.prepare_batch(model, params, batch)

    def answers(x_BT):
        return torch.tensor(np.asarray(x_BT)[:, 2:])  # the columns after the prompt

    left = np.array([[2, 5, 6]] * 4 + [[0, 2, 7]] * 4)
    mask = torch.tensor((np.arange(6) < length_R[:, None]).astype(np.int64))
    inputs = {
        "prompt_ids": torch.tensor(left), "prompt_mask": torch.tensor([[1, 1, 1]] * 4 + [[0, 1, 1]] * 4),
        "completion_ids": torch.tensor(tokens_RL) * mask, "completion_mask": mask,
        "advantages": torch.tensor(np.asarray(prepared.advantage_B)), "old_logps": answers(old).sum(1),
        "old_per_token_logps": answers(old), "ref_per_token_logps": answers(reference),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    compare(objective, batch, model, params, trainer._compute_loss(trainer.model, inputs), trainer.model)
