"""Frame-semantic parsing: the lexicon, the second annotator, and a language model with and without its constraint.

    python -m benchmarks.frames
    python -m benchmarks.frames --workdir runs/smollm2 --limit 20 --shots 4
    python -m benchmarks.frames --workdir runs/smollm2 --compile      # CPU seconds of the constraint

Scores are precision, recall and F1 of multisets on the articles of a rotation that are held out; format is the share of
answers that are a list of pairs, and hallucinated the number of triggers that do not occur in their sentence.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import jaxlm
from benchmarks.frame_data import (
    ROTATIONS,
    Lexicon,
    Sentence,
    answer_schema,
    frequent_frames,
    make_prompt,
    prompt_sentence,
    read_answer,
    read_sentences,
    score_pairs,
    score_second_annotator,
    split_by_article,
)
from jaxlm.grammar.constraint import schema_constraint
from jaxlm.inference.constraints import compile_constraint
from jaxlm.inference.generate import GenerationRequest


def show(name: str, scores: dict[str, tuple[float, float, float]], note: str = "") -> None:
    """One line of the table."""
    parts = "  ".join(f"{part} P {p:.3f} R {r:.3f} F1 {f:.3f}" for part, (p, r, f) in scores.items())
    print(f"{name:<28} {parts}  {note}", flush=True)


def baselines(sentences: Sequence[Sentence]) -> None:
    """The lexicon on each rotation, and the second annotator against the first on their common sentences."""
    rotations = []
    for rotation in range(ROTATIONS):
        parts = split_by_article(sentences, rotation)
        lexicon = Lexicon.fit(parts["train"])
        gold = [sentence.pairs for sentence in parts["test"]]
        rotations.append(score_pairs([lexicon.predict(sentence.words) for sentence in parts["test"]], gold))
        show(f"lexicon, rotation {rotation}", rotations[-1])
    mean = {
        part: tuple(sum(scores[part][i] for scores in rotations) / len(rotations) for i in range(3))
        for part in rotations[0]
    }
    show("lexicon, mean", mean)
    count, scores = score_second_annotator(sentences)
    show("second annotator", scores, f"{count} sentences")


def language_model(options: argparse.Namespace, sentences: Sequence[Sentence]) -> None:
    """Answers to prompts with the frequent frames, with and without the constraint."""
    parts, pipeline = split_by_article(sentences, options.rotation), jaxlm.load(options.workdir)
    frames = frequent_frames(parts["train"])[: options.frames]
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
    tokenizer, frames = jaxlm.load(options.workdir).tokenizer, frequent_frames(sentences)[: options.frames]
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
        baselines(sentences)


if __name__ == "__main__":
    main()
