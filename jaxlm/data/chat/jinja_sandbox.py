"""The sandbox of chat templates, on top of Jinja's: limited work, few filters. Import it only where Jinja is needed.

An iteration costs one unit of work, a call 64, a text or list that is built its length. So a template always ends and
fills no memory, at the same place on every machine.
"""

import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

MAX_RANGE = 100_000

MAX_WORK = 1 << 24
"""Units of work in one rendering: a few seconds; a dialogue of a hundred thousand characters takes a tenth."""

WORK_OF_CALL = 64

FILTERS = """
abs capitalize count d default dictsort first float int items join last length list lower map max min reject rejectattr
replace reverse safe select selectattr sort string sum title tojson trim unique upper
""".split()

TEXT_METHODS = """
capitalize count endswith find index isalnum isalpha isdigit islower isnumeric isspace isupper join lower lstrip
partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip
title upper
""".split()


class _Generator(CodeGenerator):
    """Code that counts iterations and the lengths of joined texts."""

    def visit_Concat(self, node: Any, frame: Any) -> None:
        self.write("environment.join_texts((")
        for argument in node.nodes:
            self.visit(argument, frame)
            self.write(", ")
        self.write("))")

    def visit_For(self, node: Any, frame: Any) -> None:
        counted = nodes.EnvironmentAttribute("count_iterations")
        node.iter = nodes.Call(counted, [node.iter], [], None, None)
        super().visit_For(node, frame)


class _Generation(Extension):
    """`{% generation %}` marks the answers in some templates; prefixes mark them here, so it is only read over."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """An immutable sandbox whose work is limited: `spend` ends it."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))
    work_left = 0

    def reset(self) -> None:
        """Allow the work of one more rendering."""
        self.work_left = MAX_WORK

    def spend(self, work: int) -> None:
        self.work_left -= work
        if self.work_left < 0:
            raise SecurityError(f"it does more work than is allowed ({MAX_WORK:,} units)")

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
            raise SecurityError(f"it uses {operator} with a text or a list, which is not allowed")
        if operator == "**" and abs(right) > 64 or isinstance(left, int) and left.bit_length() > 256:
            raise SecurityError("it computes a number that is too large")
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


def make_sandbox(date: str) -> Sandbox:
    """An environment with the allowed filters and functions alone; `strftime_now` gives `date`, as YYYY-MM-DD."""
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
    environment.concat = environment.join_texts  # type: ignore[method-assign]

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
    return environment
