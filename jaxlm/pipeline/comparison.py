"""Two models answer the same prompts: the win rate of the first one, and its divergence from the second one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxlm.corpora.audit import wilson_interval
from jaxlm.data.chat.dialogue import Dialogue, Turn
from jaxlm.data.chat.template import ChatTemplate
from jaxlm.decode.results import FINISH_REASONS, FINISH_STOP
from jaxlm.errors import UserError
from jaxlm.inference.generate import GenerationDefaults
from jaxlm.metrics.text import token_f1
from jaxlm.pipeline.pipeline import Pipeline
from jaxlm.pipeline.prompting import PromptedModel, last_turn
from jaxlm.tasks.prompting import hash_text
from jaxlm.tasks.rewards import judge_answers

CONTINUED = ChatTemplate(roles=(("user", "", ""),), answer_before=" ")
"""The answer continues the text of the prompt after a space."""

LENGTH_JUDGES = {"shorter": -1, "longer": 1}


def read_prompts(rows: Iterable[Any]) -> Iterator[tuple[Dialogue, str, Any]]:
    """(prompt, reference, row) of dialogues, preferences and pairs; the prompt of a text is half of its words."""
    for row in rows:
        if hasattr(row, "prompt"):
            prompt, reference = row.prompt, row.chosen if hasattr(row, "chosen") else row.answer
        else:
            text, reference = map(" ".join, np.array_split(row.split(), 2)) if isinstance(row, str) else row
            prompt = Dialogue((Turn("user", text),))
        if last_turn(prompt).strip():
            yield prompt, reference, row


def compare(
    pipelines: Sequence[Pipeline], items: Sequence[tuple], judge: str | Callable, options: GenerationDefaults, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures of the first model against the second one, and a record of each prompt with both answers.

    Each is asked in its own chat template, or in that of the first one, or continues a text. A tie is half a win;
    "interval" is Wilson's, of 95 %. "kl" is the mean of log p of the first model's answers minus their log p by the
    second model, in nats: an estimate of the divergence if the answers are samples at temperature 1.

    Args:
      judge: "reference" (F1 of the words shared with it), "shorter", "longer", or a function (prompts, answers, rows of
        the data) -> rewards, which gets both answers to a prompt in an order that is drawn by hash. Raises UserError
        if it fails or gives no finite numbers.
    """
    if not items or not all(pipeline.experiment.task.input_kind for pipeline in pipelines):
        raise UserError("a comparison needs two models that write text, and prompts that are not blank")
    templates = [getattr(pipeline.experiment.task, "chat_template", None) for pipeline in pipelines]
    models = [
        PromptedModel(run, own or templates[0] or CONTINUED) for run, own in zip(pipelines, templates, strict=True)
    ]
    prompts, references, rows = zip(*items, strict=True)
    answers = [model.answer(prompts, options, seed) for model in models]
    texts = [[text.strip() for text, _ in side] for side in answers]
    words_2N, reward_2N = np.array([[len(text.split()) for text in side] for side in texts]), np.zeros((2, len(items)))
    if judge == "reference":
        reward_2N[:] = [list(map(token_f1, side, references)) for side in texts]
    elif isinstance(judge, str):
        reward_2N[:] = words_2N * LENGTH_JUDGES[judge]
    else:
        order = [(side ^ hash_text(last_turn(prompt)) % 2, n) for n, prompt in enumerate(prompts) for side in (0, 1)]
        judged = [(last_turn(prompts[n]), texts[side][n], rows[n]) for side, n in order]
        reward_2N[*np.transpose(order)] = judge_answers(judge, *zip(*judged, strict=True))
    won_N = 0.5 + np.sign(reward_2N[0] - reward_2N[1]) / 2
    own = [(prompt, (text,)) for prompt, text in zip(prompts, texts[0], strict=True)]
    ended_N = np.array([reason == FINISH_REASONS[FINISH_STOP] for _, reason in answers[0]])
    logprob_2N = [np.where(ended_N, *(model.score(own, end)[:, 0] for end in (True, False))) for model in models]
    figures: dict[str, Any] = {"prompts": len(items), "win_rate": won_N.mean(), "ties": (won_N == 0.5).mean()}
    figures |= {"interval": wilson_interval(won_N.sum(), len(items)), "kl": np.mean(logprob_2N[0] - logprob_2N[1])}
    for name, x_2N in (("reward", reward_2N), ("words", words_2N)):
        figures |= {name: x_2N[0].mean(), f"{name}_against": x_2N[1].mean()}
    names = ("prompt", "reference", "answer", "answer_against", "reward", "reward_against", "won")
    columns = map(last_turn, prompts), references, *texts, *reward_2N.tolist(), won_N.tolist()
    return figures, [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
