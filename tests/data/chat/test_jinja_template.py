"""Chat templates of strangers: what they may do, and all that they may not."""

import re

import pytest
from fixtures.chat import CHATML_SOURCE, dialogue

from jaxlm.data.chat.dialogue import Dialogue, InvalidRecord, Turn
from jaxlm.data.chat.jinja_template import JinjaChatTemplate
from jaxlm.errors import UserError

pytest.importorskip("jinja2")
from jaxlm.data.chat import jinja_sandbox  # noqa: E402

TALK = dialogue("2 + 2?", "4", "3 + 3?", "6")

REFUSED = {
    "a module": ("{% import 'os' as os %}", "no loader"),
    "a file": ("{% include '/etc/passwd' %}", "no loader"),
    "a parent": ("{% extends '/etc/passwd' %}", "no loader"),
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "a filter for attributes": ("{{ ''|attr('__class__') }}", "No filter named 'attr'"),
    "globals of a function": ("{{ range.__globals__['x'] }}", "unsafe|undefined"),
    "globals of a class": ("{{ namespace.__init__.__globals__ }}", "unsafe"),
    "an object of Jinja": ("{{ cycler.__init__ }}{{ cycler() }}", "unsafe|undefined"),
    "a change of the messages": ("{{ messages.append(1) }}", "unsafe"),
    "a change of a dictionary": ("{{ messages[0].update(role='x') }}", "unsafe"),
    "format": ("{{ '{0.__class__}'.format(1) }}", "unsafe"),
    "a long range": ("{% for i in range(1000000) %}{% endfor %}", "range of 1,000,000 numbers"),
    "loops in loops": ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "more work"),
    "recursion": ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
    "a tree of calls": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "more work"
    ),
    "a long output": ("{% for i in range(100000) %}a very long output, " + 3 * "written often" + "{% endfor %}",
                      "writes more"),
    "a text by *": ("{{ 'a' * 1000000000 }}", r"uses \* with a text"),
    "a list by *": ("{{ messages * 1000000000 }}", r"uses \* with a text"),
    "a text by ~": ("{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
                    "more work"),
    "a text by +": ("{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
                    "more work"),
    "a text by blocks": (
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}"
        "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
        "more work",
    ),
    "a text by replace": (
        "{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s.replace('a', n.s) %}{% endfor %}",
        "more work",
    ),
    "a text by join": ("{{ range(100000)|join('a long separator' ~ range(9000)|join) }}", "more work"),
    "a width": ("{{ 'a'.center(1000000000) }}", "unsafe"),
    "a width by %": ("{{ '%999999999d' % 1 }}", "uses % with a text"),
    "a width of a date": ("{{ strftime_now('%999999999d') }}", "date format"),
    "a number": ("{{ 9 ** 9 ** 99 }}", "too large"),
    "a syntax error": ("{% for m in messages %}", "Unexpected end of template"),
    "an undefined name": ("{{ messages[0].missing.x }}", "no attribute 'missing'"),
    "its own exception": ("{{ raise_exception('Only two turns, please') }}", "Only two turns, please"),
    "a division": ("{{ 1 / 0 }}", "ZeroDivisionError"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_template_may_not_do(what, monkeypatch):
    monkeypatch.setattr(jinja_sandbox, "MAX_WORK", 1 << 20)
    source, message = REFUSED[what]
    with pytest.raises(InvalidRecord, match=f"the chat template fails: .*({message})"):
        JinjaChatTemplate(source).render(TALK, TALK.turns)


def test_a_template_may_ask_for_the_date_and_write_json():
    source = "{{ strftime_now('%d %b %Y') }} {{ tools|tojson }} {{ '<é>'|tojson }} {{ bos_token }}"
    template = JinjaChatTemplate(source, {"bos_token": "<s>"}, date="2026-02-03")
    tools = Dialogue(TALK.turns, '[{"name": "add"}]')
    assert template.render(tools, tools.turns) == '03 Feb 2026 [{"name": "add"}] "<é>" <s>'
    loop = "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }} {% endfor %}"
    assert JinjaChatTemplate(loop).render(TALK, TALK.turns) == "user assistant user "
    marked = CHATML_SOURCE.replace("{% for", "{% generation %}{% endgeneration %}{% for")
    assert JinjaChatTemplate(marked).render(TALK, TALK.turns).startswith("<|im_start|>user")


def test_limits_and_dates_are_checked_first():
    with pytest.raises(UserError, match="more than 256 KiB, the limit"):
        JinjaChatTemplate("a" * (300 << 10))
    with pytest.raises(UserError, match="'tomorrow', expected YYYY-MM-DD"):
        JinjaChatTemplate("a", date="tomorrow")


def test_a_template_that_changes_or_drops_turns_is_named():
    only_last = CHATML_SOURCE.replace("messages %}", "messages[-2:] %}", 1)
    with pytest.raises(InvalidRecord, match="before turn 4.*last one alone|drops turn 1"):
        JinjaChatTemplate(only_last).pieces(TALK)
    no_system = CHATML_SOURCE.replace("messages %}", "messages if message['role'] != 'system' %}", 1)
    with pytest.raises(InvalidRecord, match="drops turn 1, of the system"):
        JinjaChatTemplate(no_system).pieces(dialogue("q", "a", system="Be brief."))
    with pytest.raises(InvalidRecord, match="ignores the tools of the dialogue"):
        JinjaChatTemplate(CHATML_SOURCE).pieces(Dialogue(TALK.turns, '[{"name": "add"}]'))
    assert JinjaChatTemplate("{{ tools|tojson }}" + CHATML_SOURCE).pieces(Dialogue(TALK.turns, '[{"name": "add"}]'))
    shortened = "{% for m in messages %}{{ m.content if loop.last else m.content[:1] }}|{% endfor %}"
    with pytest.raises(InvalidRecord, match=re.escape("train on the last one alone (last_only=True of the reader)")):
        JinjaChatTemplate(shortened).pieces(TALK)


def test_an_answer_without_an_end_token_ends_with_eos():
    source = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    pieces = JinjaChatTemplate(source + "{% if add_generation_prompt %}assistant: {% endif %}").pieces(
        Dialogue((Turn("user", "q"), Turn("assistant", "a")))
    )
    assert [(piece.text, piece.trained, piece.is_eos) for piece in pieces] == [
        ("user: q\nassistant: ", False, False), ("a\n", True, False), ("", True, True),
    ]  # fmt: skip
