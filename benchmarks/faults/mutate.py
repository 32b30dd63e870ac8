"""Damage to the bytes of a file, drawn from a seed: what storage, editors, other programs and attackers do to it."""

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

Draw = random.Random

ODD_BYTES = (
    b"\x00", b"\xff", b"\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc2\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\r",
    b"\r\n", b"\n\n", b"\t", b"\t\t", b"\x0b", b"\x0c", b"\x1f", b"\x7f", b"\xf4\x8f\xbf\xbf", b"\xf0\x9f\x98\x80",
    b" ", b"\\", b'"', b"\\ud800", b"\x1f\x8b\x08\x00", b"%", b"$", b"{", b"]", b"(", b"<", b"&", b"..", b"/", b"//",
    b"\xe2\x96\x81",
)  # fmt: skip
ODD_NUMBERS = (
    "0", "-1", "1", "-0", "2", "7", "255", "65536", "2147483648", "-2147483649", "9223372036854775808", "1e7",
    "10000000", "1e308", "1e999", "-1e999", "NaN", "nan", "inf", "-inf", "Infinity", "0.5", "-0.0", "1e-400", "00",
    "0x10", "1_000", "+1", "\u0663", "1" * 400, "9" * 5000, "",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -1.5, 1e308, float("inf"), float("nan"), 10**7, 2**31, 2**63, -(2**63),
    10**400, "", "a", "0", "nan", "../../etc/passwd", "/etc/passwd", "\x00", "\ud800", "\u0085", "x" * 5000, [], {},
    [[]], [None], {"type": "dict"}, {"type": "float", "value": "x"}, {"type": "os.system"}, {"": {}}, [0] * 1000,
    {"a": 1, "b": [1, "x"]},
)  # fmt: skip
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
DEPTHS = 3, 100, 1100, 100_000
MAX_BYTES = 1 << 20


def mutate(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    """One to four kinds of damage; `others` are files of which pieces may be taken."""
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 4))):
        kinds = [*BYTE_KINDS, *LINE_KINDS]
        if content[:1] in (b"{", b"["):
            kinds += [_change_json] * 24
        content = draw.choice(kinds)(content, others, draw)[:MAX_BYTES]
    return content


def _place(content: bytes, draw: Draw) -> int:
    return draw.randint(0, len(content))


def _span(content: bytes, draw: Draw) -> tuple[int, int]:
    start = _place(content, draw)
    return start, min(len(content), start + draw.choice((1, 1, 2, 4, 8, 32, 256)))


def _flip_bit(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    if not content:
        return content
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def _delete(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    start, end = _span(content, draw)
    return content[:start] + content[end:]


def _repeat(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    start, end = _span(content, draw)
    return content[:end] + content[start:end] * draw.choice((1, 2, 3, 100)) + content[end:]


def _insert(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    at = _place(content, draw)
    return content[:at] + draw.choice(ODD_BYTES) * draw.choice((1, 1, 1, 2, 50)) + content[at:]


def _overwrite(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    start, end = _span(content, draw)
    return content[:start] + draw.randbytes(end - start) + content[end:]


def _truncate(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    return content[: _place(content, draw)]


def _splice(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    other = draw.choice([content, *others])
    start, end = _place(other, draw), _place(other, draw)
    at = _place(content, draw)
    return content[:at] + other[min(start, end) : max(start, end)] + content[at:]


def _change_number(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    numbers = list(NUMBER.finditer(content))
    if not numbers:
        return content
    match = draw.choice(numbers)
    return content[: match.start()] + draw.choice(ODD_NUMBERS).encode() + content[match.end() :]


def _change_integer(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    """Another little-endian number of 2, 4 or 8 bytes: a length, a count, an offset."""
    size = draw.choice((2, 4, 8))
    if len(content) < size:
        return content
    at = draw.choice((0, 8, draw.randint(0, len(content) - size)))
    old = int.from_bytes(content[at : at + size], "little")
    new = draw.choice((0, old - 1, old + 1, old * 2, 10**9, 2**31, 2 ** (8 * size) - 1, 2 ** (8 * size - 1)))
    return content[:at] + (new % 2 ** (8 * size)).to_bytes(size, "little") + content[at + size :]


def _swap_lines(lines: list[bytes], draw: Draw) -> None:
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]


def _drop_line(lines: list[bytes], draw: Draw) -> None:
    del lines[draw.randrange(len(lines))]


def _repeat_line(lines: list[bytes], draw: Draw) -> None:
    at = draw.randrange(len(lines))
    lines[at:at] = [lines[at]] * draw.choice((1, 2, 100))


def _change_cell(lines: list[bytes], draw: Draw) -> None:
    at = draw.randrange(len(lines))
    cells = lines[at].split(b"\t")
    cells[draw.randrange(len(cells))] = draw.choice(
        (b"", b" ", b"_", b"-1", b"1-2", b"\xc2\xa0", b"x" * 10_000, b"nan")
    )
    lines[at] = b"\t".join(cells)


def _drop_cell(lines: list[bytes], draw: Draw) -> None:
    at = draw.randrange(len(lines))
    cells = lines[at].split(b"\t")
    del cells[draw.randrange(len(cells))]
    lines[at] = b"\t".join(cells)


def _of_lines(change: Callable[[list[bytes], Draw], None]) -> Callable[[bytes, Sequence[bytes], Draw], bytes]:
    def changed(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
        lines = content.split(b"\n")
        change(lines, draw)
        return b"\n".join(lines)

    return changed


def _change_json(content: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    """Another value, name or depth somewhere in a JSON text; duplicate names too."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _insert(content, others, draw)
    holders = list(_holders(value))
    if not holders:
        return json.dumps(draw.choice(ODD_VALUES)).encode()
    holder, key = draw.choice(holders)
    action = draw.randrange(10)
    if action < 5:
        holder[key] = draw.choice(ODD_VALUES)
    elif action == 5:
        del holder[key]
    elif action == 6:
        other, name = draw.choice(holders)
        holder[key] = copy.deepcopy(other[name])
    elif action == 7 and isinstance(holder, dict):
        holder[draw.choice(("", "type", "$ref", key + "x", "\u0130", "__class__"))] = holder.pop(key)
    elif action == 8:
        mark = "deep value"
        holder[key] = mark
        depth = draw.choice(DEPTHS)
        left, right = draw.choice((("[", "]"), ('{"a":', "}")))
        return json.dumps(value).replace(f'"{mark}"', left * depth + "0" + right * depth).encode()
    elif isinstance(holder, dict):
        text = json.dumps(holder[key])
        pair = f"{json.dumps(key)}: {text}"
        twice = f"{pair}, {json.dumps(key)}: {draw.choice((text, '0', 'null'))}"
        return json.dumps(value).replace(pair, twice, 1).encode()
    return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")


def _holders(value: Any) -> Any:
    """(container, key) of every value inside a JSON value."""
    pending = [value]
    while pending:
        container = pending.pop()
        keys = list(container) if isinstance(container, dict) else []
        for key in range(len(container)) if isinstance(container, list) else keys:
            yield container, key
            pending.append(container[key])


BYTE_KINDS = [
    _flip_bit, _delete, _repeat, _insert, _insert, _overwrite, _truncate, _splice, _change_number, _change_number,
    _change_integer,
]  # fmt: skip
LINE_KINDS = [_of_lines(change) for change in (_swap_lines, _drop_line, _repeat_line, _change_cell, _drop_cell)]
