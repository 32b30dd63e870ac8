"""Chat templates of Hugging Face, in the template language Jinja: a stranger's program, so it runs in a sandbox.

`jaxlm.data.chat.jinja_sandbox` has its limits. Which part of a text is an answer follows from prefixes.
"""

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from jaxlm.data.chat.dialogue import Dialogue, InvalidRecord, Turn
from jaxlm.data.chat.template import Piece
from jaxlm.errors import UserError

MAX_TEMPLATE_BYTES = 256 << 10

MAX_OUTPUT_CHARS = 4 << 20


@dataclass(frozen=True)
class JinjaChatTemplate:
    """The `chat_template` of a published model.

    Attributes:
      source: the text of the template, at most 256 KiB.
      special_tokens: the values of `bos_token` and the others that the template may name.
      end_tokens: the control tokens that end a turn; what follows one in an answer is not trained.
      date: the day that `strftime_now` gives, as YYYY-MM-DD.
    """

    source: str
    special_tokens: dict[str, str] = field(default_factory=dict)
    end_tokens: tuple[str, ...] = ()
    date: str = "2026-01-01"

    control_tokens = ()
    answer_space = ""

    def __post_init__(self) -> None:
        if len(self.source.encode(errors="replace")) > MAX_TEMPLATE_BYTES:
            raise UserError(f"the chat template has more than {MAX_TEMPLATE_BYTES >> 10} KiB, the limit")
        try:
            datetime.strptime(self.date, "%Y-%m-%d")
        except ValueError:
            raise UserError(f"the date of the chat template is {self.date!r}, expected YYYY-MM-DD") from None

    def pieces(self, dialogue: Dialogue, add_generation_prompt: bool = False) -> list[Piece]:
        """The pieces of a dialogue; with the generation prompt, also the beginning of the next answer.

        Each trained answer is that which its rendering has more than the prompt before it. Raises InvalidRecord if the
        template fails, drops a turn or the tools, or changes the turns before an answer.
        """
        turns, shown, pieces = dialogue.turns, "", []
        for index, turn in enumerate(turns):
            if turn.is_trained_answer:
                prompt = self.render(dialogue, turns[:index], add_generation_prompt=True)
                whole = self.render(dialogue, turns[: index + 1])
                if not (prompt.startswith(shown) and whole.startswith(prompt)):
                    raise InvalidRecord(
                        f"the chat template changes the text before turn {index + 1}, so the loss cannot cover every "
                        "answer: train on the last one alone (last_only=True of the reader)"
                    )
                answer = whole[len(prompt) :]  # up to its last end token; without one it ends with EOS
                ends = [match.end() for token in self.end_tokens for match in re.finditer(re.escape(token), answer)]
                end = max(ends, default=len(answer))
                pieces += [Piece(prompt[len(shown) :]), Piece(answer[:end], answer=True, trained=True)]
                is_eos = not ends and index + 1 == len(turns)
                pieces += [Piece("", answer=is_eos, trained=is_eos, is_eos=is_eos), Piece(answer[end:])]
                shown = whole
        is_shown = not add_generation_prompt and any(turn.is_trained_answer for turn in turns[-1:])
        whole = shown if is_shown else self.render(dialogue, turns, add_generation_prompt)
        if not whole.startswith(shown):
            raise InvalidRecord("the chat template changes answers that are followed by another turn")
        for number, turn in enumerate(turns, start=1):
            if turn.role in ("system", "user") and turn.content.strip() not in whole:
                raise InvalidRecord(f"the chat template drops turn {number}, of the {turn.role}")
        if dialogue.tools and self.render(replace(dialogue, tools=""), turns, add_generation_prompt) == whole:
            raise InvalidRecord(
                "the chat template ignores the tools of the dialogue: put them into its system turn, or read the file "
                "without them (fields={'tools': ''})"
            )
        return [piece for piece in (*pieces, Piece(whole[len(shown) :])) if piece.text or piece.is_eos]

    def render(self, dialogue: Dialogue, turns: Iterable[Turn], add_generation_prompt: bool = False) -> str:
        """The text of some turns of a dialogue. Raises InvalidRecord with the template's own message if it fails."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        tools = json.loads(dialogue.tools) if dialogue.tools else None
        variables = self.special_tokens | {"messages": messages, "tools": tools, "documents": None}
        variables["add_generation_prompt"] = add_generation_prompt
        try:
            template = _compile(self.source, self.date)
            template.environment.reset()
            parts, size = [], 0
            for part in template.generate(variables):
                parts.append(part)
                if (size := size + len(part)) > MAX_OUTPUT_CHARS:
                    raise InvalidRecord(f"the chat template fails: it writes more than {MAX_OUTPUT_CHARS:,} characters")
            return "".join(parts)
        except UserError:
            raise
        except Exception as error:  # a stranger's program may raise anything
            message = getattr(error, "message", None) or f"{type(error).__name__}: {error!s:.200}"
            raise InvalidRecord(f"the chat template fails: {message}") from None


@functools.lru_cache(maxsize=8)
def _compile(source: str, date: str) -> Any:
    """The compiled template. Raises what Jinja raises, and UserError without Jinja."""
    try:
        from jaxlm.data.chat.jinja_sandbox import make_sandbox
    except ImportError as error:
        raise UserError("a chat template of Hugging Face needs Jinja: pip install 'jaxlm[hf]'") from error
    return make_sandbox(date).from_string(source)
