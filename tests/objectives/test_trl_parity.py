"""The losses of post-training against TRL 1.16 on tiny random models: the loss, and the gradient of two parameters."""

import jax
import numpy as np
import pytest
from references.trl_models import ARGUMENTS, ROWS, VOCAB, compare, fresh, tiny_models

from jaxlm.huggingface.convert import load_pretrained
from jaxlm.models.reward_model import RewardModel
from jaxlm.objectives.log_probs import answer_log_probs
from jaxlm.objectives.next_token import NextToken
from jaxlm.objectives.preference import KTO, PairwisePreference
from jaxlm.objectives.reward_model import BradleyTerry
from jaxlm.types import Batch

datasets = pytest.importorskip("datasets")
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer  # noqa: E402
from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

PAIRS = {
    "dpo": (PairwisePreference(beta=0.2), {"loss_type": ["sigmoid"], "beta": 0.2}),
    "dpo_norm": (PairwisePreference(kind="dpo_norm", beta=0.2), {"loss_type": ["sigmoid_norm"], "beta": 0.2}),
    "robust": (
        PairwisePreference(kind="robust", label_smoothing=0.2),
        {"loss_type": ["robust"], "label_smoothing": 0.2, "beta": 0.1},
    ),
    "hinge": (PairwisePreference(kind="hinge"), {"loss_type": ["hinge"], "beta": 0.1}),
    "ipo": (PairwisePreference(kind="ipo"), {"loss_type": ["ipo"], "beta": 0.1}),
    "apo_zero": (PairwisePreference(kind="apo_zero"), {"loss_type": ["apo_zero"], "beta": 0.1}),
    "nll": (
        PairwisePreference(nll_weight=0.5),
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.1},
    ),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_models(tmp_path_factory)


def text(rng, size, end=""):
    return " ".join(f"w{index}" for index in rng.integers(4, VOCAB, size)) + end


def pair_rows(equal_lengths=False):
    """Prompts and two answers; of equal lengths where TRL divides a term by the tokens of the batch."""
    rng = np.random.default_rng(0)
    size = (lambda: 4) if equal_lengths else (lambda: int(rng.integers(1, 6)))
    rows = [
        {
            "prompt": f"<s> {text(rng, size())} ",
            "chosen": text(rng, size(), " </s>"),
            "rejected": text(rng, size(), " </s>"),
        }
        for _ in range(ROWS)
    ]
    return datasets.Dataset.from_list(rows)


def target_fields(ids, attention, answer):
    """Their ids and masks, with BOS, as our target fields."""
    ids, attention, answer = (np.asarray(x) for x in (ids, attention, answer))
    valid = attention[:, 1:].astype(bool)
    labels = ids[:, 1:].astype(np.int32)
    return {
        "target_BT": ids[:, :-1].astype(np.int32), "label_BT": labels, "target_valid_BT": valid,
        "loss_mask_BT": answer[:, 1:].astype(bool) & valid,
    }  # fmt: skip


def halves(fields):
    """A batch of the first half of the rows, whose other answers are the second half."""
    rows = len(fields["target_BT"]) // 2
    first, other = ({name: x[part] for name, x in fields.items()} for part in (np.s_[:rows], np.s_[rows:]))
    return Batch(**first, other=Batch(**other))


def with_reference(batch, folder):
    model, params, _ = load_pretrained(folder)
    reference = jax.jit(lambda params: answer_log_probs(model, params, batch).total_BA)(params)
    return batch.replace(reference_logprob_BA=np.asarray(reference))


@pytest.mark.parametrize("kind", ["nll", "dft"])
def test_supervised(tiny, kind):
    """A mean over the tokens of all answers: the lengths differ."""
    rows = pair_rows().rename_column("chosen", "completion").remove_columns("rejected")
    arguments = SFTConfig(
        output_dir=str(tiny.folder), max_length=None, loss_type=kind, completion_only_loss=True, packing=False,
        **ARGUMENTS,
    )  # fmt: skip
    trainer = SFTTrainer(fresh(tiny), arguments, train_dataset=rows, processing_class=tiny.tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    ids, labels = np.asarray(batch["input_ids"]), np.asarray(batch["labels"])
    ours = Batch(**target_fields(ids, batch["attention_mask"], labels != -100))
    loss = trainer.compute_loss(trainer.model, dict(batch))
    compare(NextToken(kind=kind), ours, *load_pretrained(tiny.policy)[:2], loss, trainer.model)


def dpo(tiny, rows, options):
    """(their loss, their model, our batch) of the DPO trainer."""
    arguments = DPOConfig(output_dir=str(tiny.folder), max_length=None, **(ARGUMENTS | options))
    trainer = DPOTrainer(
        fresh(tiny), fresh(tiny, "reference"), arguments, train_dataset=rows, processing_class=tiny.tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer._compute_loss(trainer.model, batch, False)
    ours = halves(target_fields(*(batch[name] for name in ("input_ids", "attention_mask", "completion_mask"))))
    return loss, trainer.model, with_reference(ours, tiny.reference)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(tiny, name):
    objective, options = PAIRS[name]
    loss, theirs, batch = dpo(tiny, pair_rows(name == "nll"), options)
    compare(objective, batch, *load_pretrained(tiny.policy)[:2], loss, theirs)


def test_conservative_dpo(tiny):
    """TRL's `sigmoid` ignores label_smoothing; `aot` of a single pair is the same loss."""
    options = {"loss_type": ["aot"], "label_smoothing": 0.1, "beta": 0.3}
    loss, theirs, batch = dpo(tiny, pair_rows(), options | {"per_device_train_batch_size": 1})
    compare(PairwisePreference(beta=0.3, label_smoothing=0.1), batch, *load_pretrained(tiny.policy)[:2], loss, theirs)


WITHOUT_REFERENCE = {
    "simpo": (
        PairwisePreference(kind="simpo", beta=2.0, gamma=0.5),
        (CPOTrainer, CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5, "beta": 2.0}),
    ),
    "cpo": (
        PairwisePreference(kind="cpo", nll_weight=0.7),
        (CPOTrainer, CPOConfig, {"loss_type": "sigmoid", "cpo_alpha": 0.7, "beta": 0.1}),
    ),
    "orpo": (PairwisePreference(kind="orpo", beta=0.2), (ORPOTrainer, ORPOConfig, {"beta": 0.2})),
}


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_pairs_without_a_reference(tiny, name):
    objective, (trainer_class, config, options) = WITHOUT_REFERENCE[name]
    arguments = config(output_dir=str(tiny.folder), max_length=32, remove_unused_columns=False, **(ARGUMENTS | options))
    trainer = trainer_class(fresh(tiny), arguments, train_dataset=pair_rows(True), processing_class=tiny.tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    sides = [
        target_fields(*(np.asarray(batch[f"{side}_{part}"]) for part in ("input_ids", "attention_mask")),
                      np.asarray(batch[f"{side}_labels"]) != -100)
        for side in ("chosen", "rejected")
    ]  # fmt: skip
    ours = Batch(**sides[0], other=Batch(**sides[1]))
    compare(objective, ours, *load_pretrained(tiny.policy)[:2], loss, trainer.model)


def test_kto(tiny):
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": f"<s> {text(rng, 3)} ", "completion": text(rng, int(rng.integers(1, 6)), " </s>"), "label": label}
        for label in (True, False, False, True)
    ]
    arguments = KTOConfig(
        output_dir=str(tiny.folder), max_length=None, loss_type="kto", train_sampling_strategy="sequential", beta=0.2,
        desirable_weight=1.0, undesirable_weight=1.5, **ARGUMENTS,
    )  # fmt: skip
    trainer = KTOTrainer(
        fresh(tiny), fresh(tiny, "reference"), arguments, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny.tokenizer,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer._compute_loss(trainer.model, batch, False)
    names = "input_ids", "attention_mask", "completion_mask"
    own, other = (target_fields(*(batch[prefix + name] for name in names)) for prefix in ("", "KL_"))
    length = max(own["label_BT"].shape[1], other["label_BT"].shape[1])
    own, other = (
        {name: np.pad(x, ((0, 0), (0, length - x.shape[1]))) for name, x in side.items()} for side in (own, other)
    )
    ours = Batch(**own, other=Batch(**other), class_B=np.asarray(batch["label"]).astype(np.int32))
    objective = KTO(0.2, desirable_weight=1.0, undesirable_weight=1.5)
    batch = with_reference(ours, tiny.reference)
    compare(objective, batch, *load_pretrained(tiny.policy)[:2], loss, trainer.model)


@pytest.mark.parametrize("center", [0.0, 0.01])
def test_reward_model(tiny, center):
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": f"<s> {text(rng, 3)} ", "chosen": text(rng, 2, " </s>"), "rejected": text(rng, 4, " </s>"),
         "margin": float(index) / 3} for index in range(ROWS)
    ]  # fmt: skip
    arguments = RewardConfig(
        output_dir=str(tiny.folder), max_length=None, center_rewards_coefficient=center or None, **ARGUMENTS
    )
    trainer = RewardTrainer(
        fresh(tiny, "reward"), arguments, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny.tokenizer,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    ids, attention = (np.asarray(batch[name]) for name in ("input_ids", "attention_mask"))
    # Our reward model reads the EOS as the last label: nothing is read after it.
    ours = halves(target_fields(ids, attention, attention)).replace(value_B=np.asarray(batch["margin"]))
    trunk = fresh(tiny)  # for the files: its body gets the weights of the reward model's
    trunk.model.load_state_dict(trainer.model.model.state_dict())
    trunk.save_pretrained(tiny.folder / "trunk")
    trunk, params, _ = load_pretrained(tiny.folder / "trunk")
    head = {"kernel": trainer.model.score.weight.detach().numpy().T.copy()}
    model = RewardModel(trunk)
    compare(BradleyTerry(center), ours, model, {"model": params, "head": head}, loss, trainer.model)
