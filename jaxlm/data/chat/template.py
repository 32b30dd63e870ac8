"""Declarative chat templates: a dialogue becomes pieces of text, each of which is known to be trained on or not.

A trained piece is an answer and the end that the model must write after it. Prompts, the headers of turns and all that
follows an answer's end are not trained, so the loss mask is exact by construction.
"""

from dataclasses import dataclass

from jaxlm.data.chat.dialogue import Dialogue, InvalidRecord, Turn


@dataclass(frozen=True)
class Piece:
    """A part of a rendered dialogue.

    Attributes:
      answer: whether the assistant writes it; the text before it is encoded without it.
      trained: whether the loss covers it.
      is_eos: the piece is the tokenizer's EOS, by its id, and has no text.
    """

    text: str
    answer: bool = False
    trained: bool = False
    is_eos: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """The text around the turns of a dialogue.

    Attributes:
      begin: the text before the first turn.
      roles: (role, text before, text after) of the turns that are not the assistant's.
      answer_before: the text before an answer; its last spaces are part of the answer, as tokens begin with them.
      answer_end: the text that ends an answer, which is trained; "": the tokenizer's EOS.
      answer_after: the text after that end.
      default_system: the system turn of a dialogue that has none; "" for none.
      system_in_first_user: the system turn, with the texts around it, stands inside the first turn of the user.
      strip: contents are taken without the white space around them.
      control_tokens: the texts above that must be single tokens of the tokenizer.
    """

    begin: str = ""
    roles: tuple[tuple[str, str, str], ...] = ()
    answer_before: str = ""
    answer_end: str = ""
    answer_after: str = ""
    default_system: str = ""
    system_in_first_user: bool = False
    strip: bool = False
    control_tokens: tuple[str, ...] = ()

    @property
    def end_tokens(self) -> tuple[str, ...]:
        """The control tokens that end an answer."""
        return tuple(token for token in self.control_tokens if token in self.answer_end)

    @property
    def answer_space(self) -> str:
        """The spaces that an answer begins with, which are not part of its text."""
        return self.answer_before[len(self.answer_before.rstrip(" ")) :]

    def pieces(self, dialogue: Dialogue, add_generation_prompt: bool = False) -> list[Piece]:
        """The pieces of a dialogue; with the generation prompt, also the beginning of the next answer.

        Raises InvalidRecord for a role that the template lacks. Tools are the last paragraph of the system turn.
        """
        turns = list(dialogue.turns)
        if (not turns or turns[0].role != "system") and (self.default_system or dialogue.tools):
            turns.insert(0, Turn("system", self.default_system))
        if dialogue.tools:
            text = f"{turns[0].content}\n\nTools: {dialogue.tools}"
            turns[0] = Turn("system", text.removeprefix("\n\n"))
        pieces = [Piece(self.begin)]
        inside: list[Piece] = []  # the system turn, until the user's turn that holds it
        for turn in turns:
            if turn.role == "assistant":
                end = Piece(self.answer_end, answer=True, trained=turn.trained, is_eos=not self.answer_end)
                content = Piece(self.answer_space + self._content(turn), answer=True, trained=turn.trained)
                pieces += [Piece(self.answer_before.rstrip(" ")), content, end, Piece(self.answer_after)]
            elif turn.role == "system" and self.system_in_first_user:
                inside = list(self._turn(turn))
            else:
                before, content, after = self._turn(turn)
                pieces += [before, *inside, content, after]
                inside = []
        if inside:
            raise InvalidRecord("the system turn has no turn of the user after it, in which this template puts it")
        if add_generation_prompt:
            pieces.append(Piece(self.answer_before.rstrip(" ")))
        return [piece for piece in pieces if piece.text or piece.is_eos]

    def _turn(self, turn: Turn) -> tuple[Piece, Piece, Piece]:
        for role, before, after in self.roles:
            if role == turn.role:
                return Piece(before), Piece(self._content(turn)), Piece(after)
        known = ", ".join(role for role, _, _ in self.roles)
        raise InvalidRecord(f"the chat template has no {turn.role} turn, only {known} and assistant")

    def _content(self, turn: Turn) -> str:
        return turn.content.strip() if self.strip else turn.content


PLAIN = ChatTemplate(
    roles=(("system", "", "\n"), ("user", "User: ", "\n"), ("tool", "Tool: ", "\n")),
    answer_before="Assistant: ", answer_after="\n",
)  # fmt: skip
"""Lines of User: and Assistant:, for any vocabulary: an answer ends with EOS."""

ALPACA = ChatTemplate(
    roles=(("system", "", "\n\n"), ("user", "### Instruction:\n", "\n\n"), ("tool", "### Tool:\n", "\n\n")),
    answer_before="### Response:\n", answer_after="\n\n",
)  # fmt: skip
"""The headings of Alpaca (Taori et al. 2023)."""


CHATML = ChatTemplate(
    roles=tuple((role, f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "tool")),
    answer_before="<|im_start|>assistant\n", answer_end="<|im_end|>", answer_after="\n",
    control_tokens=("<|im_start|>", "<|im_end|>"),
)  # fmt: skip
"""ChatML, of Qwen, SmolLM2 and many others."""

LLAMA2 = ChatTemplate(
    roles=(("system", "<<SYS>>\n", "\n<</SYS>>\n\n"), ("user", "<s>[INST] ", " [/INST]")),
    answer_before=" ", answer_end=" </s>", system_in_first_user=True, strip=True, control_tokens=("<s>", "</s>"),
)  # fmt: skip
"""Llama 2 Chat (Touvron et al. 2023)."""


LLAMA3 = ChatTemplate(
    begin="<|begin_of_text|>",
    roles=tuple(
        (role, f"<|start_header_id|>{name}<|end_header_id|>\n\n", "<|eot_id|>")
        for role, name in (("system", "system"), ("user", "user"), ("tool", "ipython"))
    ),
    answer_before="<|start_header_id|>assistant<|end_header_id|>\n\n", answer_end="<|eot_id|>", strip=True,
    control_tokens=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)  # fmt: skip
"""Llama 3 Instruct."""

GEMMA = ChatTemplate(
    begin="<bos>",
    roles=(("system", "", "\n\n"), ("user", "<start_of_turn>user\n", "<end_of_turn>\n")),
    answer_before="<start_of_turn>model\n", answer_end="<end_of_turn>", answer_after="\n", system_in_first_user=True,
    strip=True, control_tokens=("<bos>", "<start_of_turn>", "<end_of_turn>"),
)  # fmt: skip
"""Gemma: the system turn stands inside the first turn of the user."""
