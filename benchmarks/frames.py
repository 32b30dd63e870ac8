"""Frame-semantic parsing on articles that are held out: trained systems on all rotations, and prompted ones.

    python -m benchmarks.frames                                       # the lexicon, and the second annotator
    python -m benchmarks.frames --variants lexicon tagger tagger_minilm --init runs/minilm
    python -m benchmarks.frames --workdir runs/smollm2 --limit 20 --shots 4
    python -m benchmarks.frames --workdir runs/smollm2 --compile      # CPU seconds of the constraint

Variants are those of `experiments.frames`. Each of them is trained and evaluated on each rotation; a run that exists is
resumed. Scores are precision, recall and F1 of multisets on the test articles of a rotation; format is the share of
answers that are a list of pairs, and hallucinated the number of triggers that do not occur in their sentence.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxlm
from experiments.frame_semantics.answers import answer_schema, make_prompt, prompt_sentence, read_answer
from experiments.frame_semantics.names import FRAMES
from experiments.frame_semantics.scores import PARTS, score_pairs, score_second_annotator
from experiments.frame_semantics.sentences import ROTATIONS, Sentence, read_sentences, split_by_article
from jaxlm.experiment import Experiment, load_experiment
from jaxlm.grammar.constraint import schema_constraint
from jaxlm.inference.constraints import compile_constraint
from jaxlm.inference.generate import GenerationRequest


def show(name: str, scores: dict[str, tuple[float, float, float]], note: str = "") -> None:
    """One line of the table."""
    parts = "  ".join(f"{part} P {p:.3f} R {r:.3f} F1 {f:.3f}" for part, (p, r, f) in scores.items())
    print(f"{name:<28} {parts}  {note}", flush=True)


def trained_systems(options: argparse.Namespace, sentences: Sequence[Sentence]) -> None:
    """Each variant on each rotation, and the second annotator against the first on their common sentences."""
    for variant in options.variants:
        rows = []
        for rotation in options.rotations:
            experiment = on_rotation(load_experiment(f"experiments.frames:{variant}"), rotation, options)
            folder = options.runs / f"frames_{variant}_{rotation}"
            if (init := experiment.finetuning.init) and not Path(init).is_dir():
                print(f"{variant}: skipped, it starts from {init}, which does not exist (--init)")
                break
            jaxlm.train(experiment, folder)
            figures = jaxlm.load(folder).evaluate("test")
            for system in [name for name in ("constrained", "unconstrained") if name in figures] or [""]:
                made = figures[system] if system else figures
                scores = {part: tuple(made[part][key] for key in ("precision", "recall", "f1")) for part in PARTS}
                show(f"{variant} {system} {rotation}", scores, _note(made))
                if system != "unconstrained":
                    rows.append(scores)
        if not rows:
            continue
        mean = {part: tuple(statistics.mean(row[part][i] for row in rows) for i in range(3)) for part in PARTS}
        show(f"{variant}, mean", mean)
    count, agreement = score_second_annotator(sentences)
    show("second annotator", agreement, f"{count} sentences")


def on_rotation(experiment: Experiment, rotation: int, options: argparse.Namespace) -> Experiment:
    """The experiment on the articles of a rotation, from another run or with other numbers of steps if given."""
    task: Any = experiment.task
    splits = {name: replace(getattr(task, name), rotation=rotation) for name in ("train", "valid", "test")}
    experiment = replace(experiment, task=replace(task, **splits))
    if options.steps and not hasattr(experiment.model, "fit"):
        experiment = replace(experiment, steps=options.steps)
    if options.init and experiment.finetuning.init:
        experiment = replace(experiment, finetuning=replace(experiment.finetuning, init=options.init))
    return experiment


def _note(figures: dict[str, Any]) -> str:
    macro, seen, unseen = (figures[name] for name in ("macro", "seen", "unseen"))
    note = f"macro F1 {macro['f1'] or 0:.3f} of {macro['frames']} frames, recall of seen frames {seen['recall']:.3f}, "
    note += f"of {unseen['pairs']} pairs with unseen ones {unseen['recall']:.3f}"
    if "format" in figures:
        note += f", format {figures['format']:.0f} %, hallucinated {figures['hallucinated_triggers']}"
    return note


def language_model(options: argparse.Namespace, sentences: Sequence[Sentence]) -> None:
    """Answers to prompts with the frequent frames, with and without the constraint."""
    parts, pipeline = split_by_article(sentences, options.rotation), jaxlm.load(options.workdir)
    frames = FRAMES["all"][: options.frames]
    shots, test = parts["train"][: options.shots], parts["test"][: options.limit]
    prompts = [make_prompt(sentence, frames, shots, parts["train"]) for sentence in test]
    gold = [[pair for pair in sentence.pairs if pair[0] in frames] for sentence in test]
    free = GenerationRequest(jaxlm.Sampler(temperature=0.0), max_tokens=options.max_tokens, stop_strings=("\n",))
    kept = replace(
        free, stop_strings=(), constraint=schema_constraint(answer_schema(frames)), source_of=prompt_sentence
    )
    for name, request in (("unconstrained", free), ("constrained", kept)):
        clock = time.perf_counter()
        texts = [sample.text for sample in pipeline.generate_stream(prompts, request)]
        answers = [read_answer(text) for text in texts]
        pairs = [answer or [] for answer in answers]
        invented = sum(
            (Counter(word for _, word in answer) - Counter(dict.fromkeys(sentence.words, len(answer)))).total()
            for answer, sentence in zip(pairs, test, strict=True)
        )
        note = f"format {sum(a is not None for a in answers) / len(answers):.0%}, hallucinated {invented}"
        show(name, score_pairs(pairs, gold), f"{note}, {(time.perf_counter() - clock) / len(test):.1f} s a sentence")


def compile_times(options: argparse.Namespace, sentences: Sequence[Sentence]) -> None:
    """CPU seconds of the shared part of the constraint, and of each sentence."""
    tokenizer, frames = jaxlm.load(options.workdir).tokenizer, FRAMES["all"][: options.frames]
    clock = time.process_time()
    template = compile_constraint(schema_constraint(answer_schema(frames)), tokenizer).template
    shared, clock = time.process_time() - clock, time.process_time()
    for sentence in sentences[: options.limit]:
        template.row(sentence.text)
    each = (time.process_time() - clock) / len(sentences[: options.limit])
    print(f"{len(frames)} frames, {len(template.next_QC)} states: {shared:.2f} s once, {each:.3f} s a sentence")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", help="a language model that answers prompts")
    parser.add_argument("--compile", action="store_true", help="measure the constraint alone")
    parser.add_argument("--variants", nargs="+", default=["lexicon"], help="of experiments.frames")
    parser.add_argument("--rotations", nargs="+", type=int, default=list(range(ROTATIONS)))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of the workdirs")
    parser.add_argument("--steps", type=int, default=0, help="steps of a run, if not those of the experiment")
    parser.add_argument("--init", default="", help="the run that a variant starts from, if not that of the experiment")
    for name, value in (("limit", 20), ("shots", 4), ("rotation", 0), ("frames", 102), ("max-tokens", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    sentences = read_sentences()
    if options.compile and not options.workdir:
        parser.error("--compile needs --workdir: its tokenizer decides the states")
    if options.compile:
        compile_times(options, sentences)
    elif options.workdir:
        language_model(options, sentences)
    else:
        trained_systems(options, sentences)


if __name__ == "__main__":
    main()
