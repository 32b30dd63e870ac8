"""Training throughput against TRL: supervised fine-tuning, and DPO with a stored reference.

    python -m benchmarks.trl_throughput
    python -m benchmarks.trl_throughput --losses dpo --equal --cores 1

One small Llama (4 layers, width 128, 2,000 ids) with the same weights, the same rows and AdamW, both in float32. A
round is an epoch of 256 rows, and the contestants, each a process of its own, take turns; the medians are compared.
With --equal all rows have 64 positions, half of them the answer, and both sides read the same shapes: 32 rows a batch.
Without it prompts and answers have 4 to 32 tokens each; TRL pads the 32 rows of a batch to the longest, and jaxlm fills
buckets of three lengths with up to 2,048 positions. TRL's step is its `compute_loss`, backward, and a fused AdamW.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Run, cores, load, machine, serve, take_turns

VOCAB, ROWS, LENGTH, EPOCH = 2000, 32, 64, 256
RATE = 1e-4
LOSSES = "sft", "dpo"


def make_rows(equal: bool) -> list[tuple[list[int], list[int], list[int]]]:
    """Ids of prompts (without BOS) and of two answers (without EOS)."""
    rng = np.random.default_rng(0)

    def ids(size: int) -> list[int]:
        return rng.integers(4, VOCAB, size if equal else rng.integers(4, size + 1)).tolist()

    return [(ids(31), ids(32), ids(32)) for _ in range(EPOCH)]


def write_model(folder: Path) -> None:
    """A random Llama and a tokenizer of words w4, w5, ..., in Hugging Face's files."""
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, max_position_embeddings=256,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = ["<pad>", "<unk>", "<s>", "</s>", *(f"w{index}" for index in range(4, VOCAB))]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def _epochs(step: Callable[[Any], None], batches: list[Any], tokens: Any) -> tuple[dict[str, Any], Run]:
    """Warm in every shape; a step of the contest is an epoch, whose batches have this number of `tokens` to predict."""
    for _ in range(2):
        for batch in batches:
            step(batch)

    def run(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            begin = time.perf_counter()
            for batch in batches:
                step(batch)
            seconds.append(time.perf_counter() - begin)
        return seconds

    return {"batches": len(batches), "tokens": int(tokens)}, run


def _columns(loss: str, equal: bool) -> dict[str, Any]:
    """The rows as columns of ids."""
    from jaxlm.data.ragged import Ragged

    rows, columns = make_rows(equal), {}
    for side, prefix in enumerate(("", "other_") if loss == "dpo" else ("",)):
        targets = [prompt + answers[side] for prompt, *answers in rows]
        masks = [[0] * len(prompt) + [1] * (len(answers[side]) + 1) for prompt, *answers in rows]
        columns[f"{prefix}target"] = Ragged.from_rows(targets, np.int32)
        columns[f"{prefix}loss_mask"] = Ragged.from_rows(masks, np.uint8)
    return columns


def start_jaxlm(loss: str, equal: bool, folder: Path) -> tuple[dict[str, Any], Run]:
    """The step that `jaxlm train` runs."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from jaxlm import runtime

    runtime.configure_process()
    import jax

    from jaxlm import AdamW, Buckets, Constant, NextToken, PairwisePreference
    from jaxlm.huggingface.convert import load_pretrained
    from jaxlm.models.properties import dummy_batch
    from jaxlm.objectives.log_probs import answer_log_probs
    from jaxlm.training.state import create_train_state
    from jaxlm.training.step import make_train_step

    model, params, _ = load_pretrained(folder)
    columns = _columns(loss, equal)
    plan = Buckets(tokens=ROWS * LENGTH, max_length=LENGTH, lengths=(LENGTH,) if equal else None, max_shapes=3)
    planned = plan.batches(columns)
    batches = [planned[index] for index in range(int(planned.epoch_order.batches_per_epoch))]
    tokens = sum(side.target_valid_BT.sum() for batch in batches for side in (batch, batch.other) if side)
    if loss == "dpo":
        reference = jax.jit(lambda params, batch: answer_log_probs(model, params, batch).total_BA)
        batches = [batch.replace(reference_logprob_BA=np.asarray(reference(params, batch))) for batch in batches]
    optimizer = AdamW(Constant(RATE), weight_decay=0.01)
    built, rate = optimizer.build(1000), optimizer.schedule.build(1000)
    compiled = make_train_step(model, PairwisePreference() if loss == "dpo" else NextToken(), built, rate)
    state = jax.jit(lambda: create_train_state(model, built, dummy_batch(), 0))()
    state = state.replace(params=jax.tree.map(jax.numpy.asarray, params))

    def step(batch: Any) -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    return _epochs(step, batches, tokens)


def _record(*row: list[int]) -> dict[str, str]:
    """A row of TRL's data."""
    prompt, chosen, rejected = (" ".join(f"w{index}" for index in ids) for ids in row)
    return {"prompt": f"<s> {prompt} ", "chosen": f"{chosen} </s>", "rejected": f"{rejected} </s>"}


def start_trl(loss: str, equal: bool, folder: Path) -> tuple[dict[str, Any], Run]:
    """TRL's trainer: its collation, its loss, and a fused AdamW."""
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    from jaxlm import runtime

    runtime.configure_malloc()  # helps PyTorch too
    import datasets
    import torch
    import transformers
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    torch.set_num_threads(cores())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    arguments: dict[str, Any] = {
        "output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "report_to": "none", "save_strategy": "no", "max_length": None, "per_device_train_batch_size": ROWS,
    }  # fmt: skip

    rows = datasets.Dataset.from_list([_record(*row) for row in make_rows(equal)])
    if loss == "sft":
        rows = rows.rename_column("chosen", "completion").remove_columns("rejected")
        settings: Any = SFTConfig(completion_only_loss=True, packing=False, **arguments)
        trainer: Any = SFTTrainer(model, settings, train_dataset=rows, processing_class=tokenizer)
    else:
        settings = DPOConfig(precompute_ref_log_probs=True, **arguments)
        trainer = DPOTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer)
    batches = list(trainer.get_train_dataloader())
    trainer.model.train()
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=RATE, weight_decay=0.01, fused=True)

    def step(batch: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        value = trainer.compute_loss(trainer.model, dict(batch))
        value.backward()
        optimizer.step()
        value.item()

    return _epochs(
        step, batches, sum(batch["attention_mask"].sum() - len(batch["attention_mask"]) for batch in batches)
    )


def main() -> None:
    """Print a line for each loss and contestant, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--equal", action="store_true", help="rows of 64 tokens each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=0, help="number of cores to use (0: all)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.cores]))
    if options.worker:
        side, loss = options.worker.split("-")
        serve(lambda: {"jaxlm": start_jaxlm, "trl": start_trl}[side](loss, options.equal, options.folder))
        return
    print(machine())
    with tempfile.TemporaryDirectory() as made:
        write_model(Path(made))
        for loss in options.losses:
            same = [sys.executable, "-m", "benchmarks.trl_throughput", "--folder", made, *["--equal"][: options.equal]]
            commands = {side: [*same, "--worker", f"{side}-{loss}"] for side in ("jaxlm", "trl")}
            names = take_turns(commands, 1, options.rounds, 900, lambda one: f"{one.facts['batches']} batches an epoch")
            wall, cpu = {}, {}
            for one in names:
                wall[one.name] = one.facts["tokens"] / statistics.median(r["seconds"][0] for r in one.rounds)
                cpu[one.name] = one.facts["tokens"] / statistics.median(r["cpu_seconds"] for r in one.rounds)
                print(f"{loss} {one.name:6} {wall[one.name]:9,.0f} tokens/s  {cpu[one.name]:9,.0f} a CPU second")
            print(
                f"{loss} jaxlm / TRL: {wall['jaxlm'] / wall['trl']:.2f} by time, {cpu['jaxlm'] / cpu['trl']:.2f} by CPU"
            )
    print(f"load after {load()}")


if __name__ == "__main__":
    main()
