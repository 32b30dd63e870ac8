"""Chat templates of Hugging Face, in the template language Jinja: a stranger's program, so it runs in a sandbox.

The sandbox is immutable and has no loader, no attribute with an underscore, and only the filters and methods below. Its
work is limited: an iteration costs one unit, a call 64, a text or list that is built its length. So it always ends
and fills no memory, at the same place on every machine.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jaxlm.data.chat.dialogue import Dialogue, InvalidRecord, Turn
from jaxlm.data.chat.template import Piece
from jaxlm.errors import UserError

MAX_TEMPLATE_BYTES = 256 << 10

MAX_OUTPUT_CHARS = 4 << 20

MAX_RANGE = 100_000

MAX_WORK = 1 << 24
"""Units of work in one rendering: a few seconds; a dialogue of a hundred thousand characters takes a tenth."""

WORK_OF_CALL = 64

FILTERS = """
abs capitalize count d default dictsort first float int items join last length list lower map max min reject rejectattr
replace reverse safe select selectattr sort string sum title tojson trim unique upper
""".split()

FAILURES = ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError

TEXT_METHODS = """
capitalize count endswith find index isalnum isalpha isdigit islower isnumeric isspace isupper join lower lstrip
partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip
title upper
""".split()


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
        template fails, drops a turn, or changes the turns before an answer.
        """
        turns, shown, pieces = dialogue.turns, "", []
        for index, turn in enumerate(turns):
            if turn.role == "assistant" and turn.trained:
                prompt = self.render(dialogue, turns[:index], add_generation_prompt=True)
                whole = self.render(dialogue, turns[: index + 1])
                if not (prompt.startswith(shown) and whole.startswith(prompt)):
                    raise InvalidRecord(
                        f"the chat template changes the text before turn {index + 1}, so the loss cannot cover every "
                        "answer: train on the last one alone (last_only=True of the reader)"
                    )
                pieces += [Piece(prompt[len(shown) :]), *self._answer(whole[len(prompt) :], index + 1 == len(turns))]
                shown = whole
        whole = self.render(dialogue, turns, add_generation_prompt)
        if not whole.startswith(shown):
            raise InvalidRecord("the chat template changes answers that are followed by another turn")
        for number, turn in enumerate(turns, start=1):
            if turn.role in ("system", "user") and turn.content.strip() not in whole:
                raise InvalidRecord(f"the chat template drops turn {number}, of the {turn.role}")
        return [piece for piece in (*pieces, Piece(whole[len(shown) :])) if piece.text or piece.is_eos]

    def _answer(self, text: str, is_last: bool) -> Iterator[Piece]:
        """An answer up to its last end token, and the text after it; without an end token it ends with EOS."""
        ends = [match.end() for token in self.end_tokens for match in re.finditer(re.escape(token), text)]
        end = max(ends, default=len(text))
        yield Piece(text[:end], answer=True, trained=True)
        if not ends and is_last:
            yield Piece("", answer=True, trained=True, is_eos=True)
        yield Piece(text[end:])

    def render(self, dialogue: Dialogue, turns: Iterable[Turn], add_generation_prompt: bool = False) -> str:
        """The text of some turns of a dialogue. Raises InvalidRecord with the template's own message if it fails."""
        import jinja2

        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        tools = json.loads(dialogue.tools) if dialogue.tools else None
        variables = self.special_tokens | {"messages": messages, "tools": tools, "documents": None}
        variables["add_generation_prompt"] = add_generation_prompt
        try:
            template = _compile(self.source, self.date)
            template.environment.work_left = MAX_WORK
            parts, size = [], 0
            for part in template.generate(variables):
                parts.append(part)
                if (size := size + len(part)) > MAX_OUTPUT_CHARS:
                    raise jinja2.TemplateError(f"it writes more than {MAX_OUTPUT_CHARS:,} characters")
            return "".join(parts)
        except jinja2.TemplateError as error:
            raise InvalidRecord(f"the chat template fails: {error.message}") from None
        except FAILURES as error:
            raise InvalidRecord(f"the chat template fails: {type(error).__name__}: {error!s:.200}") from None


@functools.lru_cache(maxsize=8)
def _compile(source: str, date: str) -> Any:
    """The compiled template. Raises TemplateError, and UserError without Jinja."""
    try:
        import jinja2.ext
        import jinja2.nodes
        import jinja2.sandbox
    except ImportError as error:
        raise UserError("a chat template of Hugging Face needs Jinja: pip install 'jaxlm[hf]'") from error

    class Generator(jinja2.compiler.CodeGenerator):
        def visit_Concat(self, node: Any, frame: Any) -> None:
            self.write("environment.join_texts((")
            for argument in node.nodes:
                self.visit(argument, frame)
                self.write(", ")
            self.write("))")

        def visit_For(self, node: Any, frame: Any) -> None:
            counted = jinja2.nodes.EnvironmentAttribute("count_iterations")
            node.iter = jinja2.nodes.Call(counted, [node.iter], [], None, None)
            super().visit_For(node, frame)

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks the answers in some templates; prefixes mark them here, so it is only read over."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        code_generator_class = Generator
        intercepted_binops = frozenset(("+", "*", "**", "%"))
        work_left = 0

        def spend(self, work: int) -> None:
            self.work_left -= work
            if self.work_left < 0:
                raise jinja2.sandbox.SecurityError(f"it does more work than is allowed ({MAX_WORK:,} units)")

        def count_iterations(self, values: Iterable) -> Iterator:
            for value in values:
                self.spend(1)
                yield value

        def join_texts(self, values: Iterable, separator: str = "") -> str:
            texts = list(map(str, values))
            self.spend(sum(map(len, texts)) + len(texts) * (1 + len(separator)))
            return separator.join(texts)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(x) if hasattr(x, "__len__") else 0 for x in (left, right)]
            if operator == "%" and sizes[0] or operator in "**" and any(sizes):
                raise jinja2.sandbox.SecurityError(f"it uses {operator} with a text or a list, which is not allowed")
            if operator == "**" and abs(right) > 64 or isinstance(left, int) and left.bit_length() > 256:
                raise jinja2.sandbox.SecurityError("it computes a number that is too large")
            self.spend(1 + sum(sizes))
            return super().call_binop(context, operator, left, right)

        def wrap_str_format(self, value: Any) -> None:
            """`format` is not among the methods of a text."""

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return super().is_safe_attribute(obj, attr, value) and (not isinstance(obj, str) or attr in TEXT_METHODS)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            __self.spend(WORK_OF_CALL)
            if isinstance(text := getattr(__obj, "__self__", None), str):
                __self.spend(len(text))
                if __obj.__name__ in ("replace", "join"):
                    __self.spend((len(text) + 1) * sum(len(x) for x in args if hasattr(x, "__len__")))
            return super().call(__context, __obj, *args, **kwargs)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
    environment.concat = environment.join_texts  # type: ignore[method-assign]
    _restrict(environment, date)
    return environment.from_string(source)


def _restrict(environment: Any, date: str) -> None:
    """Leave the allowed filters and functions alone in an environment."""
    import jinja2

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(str(message))

    def bounded_range(*limits: int) -> range:
        if len(values := range(*limits)) > MAX_RANGE:
            raise jinja2.TemplateError(f"it has a range of {len(values):,} numbers, more than {MAX_RANGE:,}")
        return values

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 16) if indent else indent, **options)
        environment.spend(len(text))
        return text

    def join(values: Iterable, separator: str = "", attribute: str | None = None) -> str:
        if attribute is not None:
            values = (environment.getitem(value, attribute) for value in values)
        return environment.join_texts(values, str(separator))

    def replace(text: str, old: str, new: str, count: int = -1) -> str:
        environment.spend((len(str(text)) + 1) * (len(str(new)) + 1))
        return str(text).replace(str(old), str(new), count)

    def strftime_now(form: str) -> str:
        if re.search("%[^a-zA-Z%]", form):  # a width, such as that of %999999999d
            raise jinja2.TemplateError(f"its date format is {form!r:.40}, expected letters after each %")
        return datetime.strptime(date, "%Y-%m-%d").strftime(form)

    own = {"tojson": to_json, "join": join, "replace": replace}
    environment.filters = {name: own.get(name, environment.filters[name]) for name in FILTERS}
    environment.globals = {
        "raise_exception": raise_exception, "range": bounded_range, "namespace": jinja2.utils.Namespace,
        "dict": lambda **entries: entries, "strftime_now": strftime_now,
    }  # fmt: skip
