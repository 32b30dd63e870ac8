"""The readers of models: experiment.json, and the files of a published model (see `readers`)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.faults.readers import Reader
from benchmarks.faults.readers_storage import byte_level_bpe, sentencepiece

KINDS = {"gpt2": "decoder", "llama": "decoder", "bert": "encoder", "marian": "encoder_decoder"}
WITH_WEIGHTS = "config.json", "model.safetensors", "model.safetensors.index.json", "generation_config.json"
"""Files that are read together with the arrays, which takes longer than to read the tokenizer alone."""

WIDTH = {"width": 8, "heads": 2, "hidden": 16}


@cache
def _experiments() -> list[bytes]:
    """experiment.json of every family."""
    import tempfile

    from benchmarks.faults import families
    from jaxlm.workdir import Workdir

    contents = []
    for name in families.FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            workdir = Workdir(Path(folder))
            workdir.write_experiment(getattr(families, name)())
            contents.append(workdir.experiment_file.read_bytes())
    return contents


def _read_experiment(content: bytes, folder: Path) -> None:
    from jaxlm.workdir import Workdir

    workdir = Workdir(folder)
    workdir.experiment_file.write_bytes(content)
    workdir.read_experiment()


def _load_experiment(content: bytes, folder: Path) -> None:
    """As `Workdir.load` does before it reads arrays."""
    from jaxlm.workdir import Workdir

    workdir = Workdir(folder)
    workdir.experiment_file.write_bytes(content)
    experiment = workdir.read_experiment()
    workdir.open_checkpoints(experiment, read_only=True).close()
    experiment.abstract_params()


def _model(kind: str) -> Any:
    from jaxlm.models.decoder import Decoder
    from jaxlm.models.encoder import Encoder
    from jaxlm.models.encoder_decoder import EncoderDecoder

    if kind == "gpt2":
        return Decoder(290, **WIDTH, layers=1, max_length=32)
    if kind == "llama":
        llama = {"position": "rotary", "norm_kind": "rms", "activation": "swiglu", "qkv_bias": False, "out_bias": False}
        return Decoder(290, **WIDTH, **llama, ffn_bias=False, layers=1, max_length=32, tie_embeddings=False)
    if kind == "bert":
        return Encoder(290, **WIDTH, layers=1, max_length=32)
    return EncoderDecoder(290, **WIDTH, encoder_layers=1, decoder_layers=1, position="sinusoidal_halves",
                          activation="silu", max_length=32, logit_bias=True)  # fmt: skip


def save_published(kind: str, folder: Path) -> None:
    """A whole published model, of zeros, with tokenizer and all side files."""
    import jax
    import numpy as np

    from jaxlm.huggingface.convert import save_pretrained
    from jaxlm.models.properties import abstract_params

    model = _model(kind)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(model))
    config = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "marian":
        config |= {"decoder_start_token_id": 0, "model_type": "marian"}
        for name in ("source.spm", "target.spm"):
            (folder / name).write_bytes(sentencepiece().to_bytes())
        pieces = ["<pad>", "<unk>", "</s>", ">>es<<", "\u2581the", "a"]
        (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    else:
        (folder / "tokenizer.json").write_text(byte_level_bpe(), encoding="utf-8")
    save_pretrained(folder, model, params, config)
    roles = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": {"content": "<mask>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**roles, "tokenizer_class": "GPT2Tokenizer"}))
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": 280, "<more>": 281}))
    (folder / "generation_config.json").write_text(json.dumps(config | {"num_beams": 2, "max_length": 20}))


def _read_published(folder: Path) -> None:
    """Read what `import-hf` reads before it writes."""
    from jaxlm.huggingface.convert import load_pretrained
    from jaxlm.models.encoder import Encoder
    from jaxlm.models.encoder_decoder import EncoderDecoder

    model, _, config = load_pretrained(folder)
    kind = "encoder" if isinstance(model, Encoder) else "decoder"
    _use_side_files(folder, config, model, "encoder_decoder" if isinstance(model, EncoderDecoder) else kind)


def _use_side_files(folder: Path, config: Any, model: Any, kind: Any) -> None:
    from jaxlm.huggingface.tokenizer_files import find_mask_token, read_tokenizer
    from jaxlm.huggingface.workdir import task_for_model

    tokenizer = read_tokenizer(folder, config, model.vocab, kind)
    task_for_model(model, config, find_mask_token(folder, tokenizer))
    tokenizer.decode([row.tolist() for row in tokenizer.encode(["the dog", "", ">>es<<a"])])


def _published(kind: str, name: str) -> Reader:
    """One file of a published model."""

    def prepare(folder: Path) -> list[bytes]:
        save_published(kind, folder)
        if name.endswith(".index.json"):
            (folder / "model.safetensors").rename(folder / "a.safetensors")
            from jaxlm.huggingface.checkpoint_folder import read_safetensors

            names = dict.fromkeys(read_safetensors(folder / "a.safetensors"), "a.safetensors")
            (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
        return [(folder / name).read_bytes()]

    def read(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        if name in WITH_WEIGHTS:
            _read_published(folder)
        else:
            config = json.loads((folder / "config.json").read_bytes())
            _use_side_files(folder, config, _model(kind), KINDS[kind])

    return Reader(prepare, read)


MODEL_READERS: dict[str, Reader] = {
    "experiment.json": Reader(lambda folder: _experiments(), _read_experiment),
    "experiment's model": Reader(lambda folder: _experiments(), _load_experiment),
    **{f"config.json of {kind}": _published(kind, "config.json") for kind in ("gpt2", "llama", "bert", "marian")},
    "index of weights": _published("gpt2", "model.safetensors.index.json"),
    "safetensors": _published("gpt2", "model.safetensors"),
    "generation_config": _published("llama", "generation_config.json"),
    "tokenizer_config": _published("bert", "tokenizer_config.json"),
    "added_tokens": _published("llama", "added_tokens.json"),
    "published tokenizer.json": _published("gpt2", "tokenizer.json"),
    "published vocab.json": _published("marian", "vocab.json"),
    "published spm": _published("marian", "source.spm"),
}
