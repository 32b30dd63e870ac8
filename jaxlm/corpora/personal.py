"""Personal data and secrets in texts: found by pattern, confirmed by check digits and registries, masked.

Names of persons and postal addresses are not found.
"""

import functools
import hashlib
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from jaxlm.corpora.document import Document
from jaxlm.errors import UserError

Kind = Literal["secret", "email", "iban", "ip", "card", "id", "phone"]
ATOM = r"[\w!#$%&'*+/=?^`{|}~-]"
PATTERNS: dict[str, str] = {
    "secret": r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]{1,20000}-----END [A-Z ]{0,30}PRIVATE KEY-----"
    r"|(?<=://)[^\s/:@]{1,100}:[^\s/@]{1,100}(?=@)"
    r"|\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_\w{36}|github_pat_\w{22,90}|glpat-[\w-]{20}|sk-[\w-]{20,200}|"
    r"[sr]k_live_\w{20,100}|xox[abprs]-[\w-]{10,100}|AIza[\w-]{35}|hf_[A-Za-z]{30,40}|npm_\w{36})(?![\w-])",
    "email": rf"(?<!{ATOM}){ATOM}{{1,64}}(?:\.{ATOM}{{1,64}}){{0,8}}@(?:[^\W_][\w-]{{0,62}}\.){{1,8}}[^\W\d_]{{2,63}}",
    "iban": r"\b[A-Z]{2}\d{2}(?=[ ]?[A-Z0-9]{4})(?:[ ]?[A-Z0-9]){11,30}",
    "ip": r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"
    r"|(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])",
    "card": r"(?<![\w.,+-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w-]|[.,]\d)",
    "id": r"(?<![\w.-])(?:\d{8}-?[A-Z]|[XYZ]-?\d{7}-?[A-Z]|\d\.\d{3}\.\d{3}-\d|\d{6,7}-\d|\d{3}-\d\d-\d{4})"
    r"(?![\w-]|\.\d)",
    "phone": r"(?<![\w.,:/$€£#=-])(?:\+ ?|\(\+?)?\d(?:[ ().\-/]{0,3}\d){6,14}(?![\w-]|[.,:/]\d)",
}
"""The pattern of each kind; every one has bounded repetitions, so that a long line costs no more than a short one."""

MASKS = {"email": "[EMAIL]", "phone": "[PHONE]", "ip": "[IP]", "card": "[CARD]", "iban": "[IBAN]", "id": "[ID]"}
MASKS["secret"] = "[SECRET]"
IBAN_LENGTHS = dict(
    re.findall(
        r"([A-Z]{2})(\d{2})",
        "AD24AE23AT20BE16BG22BR29CH21CR22CY28CZ24DE22DK18DO28EE20ES24FI18FR27GB22GI23GR27GT28HR21HU28IE22IL23IS26IT27LI21"
        "LT20LU20LV21MC27MT31MX18NL18NO15PL28PT25RO24RS22SA24SE24SI19SK24SM27TR26UA29",
    )
)
CARD_LENGTHS = (("34|37", "15"), ("30|36|38", "14"), ("4", "13|16|19"), ("5[1-5]|2[2-7]", "16"), ("6", "16|17|18|19"))
"""Beginnings of the numbers of issuers, and their lengths."""

EXAMPLES = {"email": "user{}@example.org", "ip": "192.0.2.{}", "phone": "555-01{:02}"}
"""Values that are reserved for examples (RFC 2606, RFC 5737, the North American numbering plan)."""

DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
VERSION = re.compile(r"(?:version|ver|release|build|firmware|section|chapter|v)[ .:#]{0,3}$", re.IGNORECASE)
OTHER_NUMBER = re.compile(r"isbn|issn|doi|#", re.IGNORECASE)
CONTEXT = 100


@dataclass(frozen=True)
class Personal:
    """Masks personal data, before anything of a document is written.

    Attributes:
      style: "mask" writes [EMAIL] and the like; "example" writes values reserved for examples, chosen by a keyed hash
        of the document's id and the place, so that equal values cannot be linked. Kinds without such values are masked.
      regions: whose national telephone numbers are found; international ones always are.
      more: a frozen dataclass with a method `spans(text)` that yields (start, end, mask) of what a library finds,
        such as names.
    """

    kinds: tuple[Kind, ...] = get_args(Kind)
    style: Literal["mask", "example"] = "mask"
    regions: tuple[str, ...] = ("US",)
    more: Any = None

    def __post_init__(self) -> None:
        if unknown := set(self.kinds) - set(PATTERNS):
            raise UserError(f"kinds of personal data {sorted(unknown)}: expected some of {', '.join(PATTERNS)}")

    def apply(self, document: Document) -> Document:
        """The masked document; `meta["masked"]` counts the masks of each kind."""
        text, counts = document.text, Counter(document.meta.get("masked", {}))
        if self.more is not None:
            for start, end, mask in sorted(self.more.spans(text), reverse=True):
                text, counts[mask] = text[:start] + mask + text[end:], counts[mask] + 1
        for kind in (kind for kind in PATTERNS if kind in self.kinds):
            spans = list(self.spans(kind, text))
            for number, (start, end) in reversed(list(enumerate(spans))):
                text = text[:start] + self._value(kind, f"{document.id}:{kind}:{number}") + text[end:]
            if spans:
                counts[kind] += len(spans)
        meta = document.meta | {"masked": dict(counts)}
        return document if text == document.text else replace(document, text=text, meta=meta)

    def spans(self, kind: str, text: str) -> Iterator[tuple[int, int]]:
        """The places of confirmed data of one kind."""
        if (kind == "email" and "@" not in text) or (kind == "ip" and text.count(".") + text.count(":") < 2):
            return
        place, pattern = 0, _compiled(kind)
        while match := pattern.search(text, place):
            confirm: Callable = _CONFIRM[kind]
            start, end = confirm(self, match) or (match.end(), 0)
            if end:
                yield start, end
            place = max(end, match.end() if end else match.start() + 1)

    def _value(self, kind: str, place: str) -> str:
        if self.style == "mask" or kind not in EXAMPLES:
            return MASKS[kind]
        return EXAMPLES[kind].format(hashlib.blake2b(place.encode(), key=b"example", digest_size=1).digest()[0] % 100)


@functools.cache
def _compiled(kind: str) -> re.Pattern:
    return re.compile(PATTERNS[kind])


_Place = tuple[int, int]


def _secret(step: Personal, match: re.Match) -> _Place | None:
    text = match[0]
    if text.startswith("-----") or ":" in text:
        return match.span()
    entropy = -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())
    return match.span() if entropy > 3.5 else None


def _email(step: Personal, match: re.Match) -> _Place | None:
    start = match.start() + len(match[0]) - len(match[0].lstrip("'*/={|}`"))
    reserved = re.search(r"@(?:.*\.)?example\.(?:org|com|net)$", match[0])
    return None if reserved or match.string[start] == "@" else (start, match.end())


def _iban(step: Personal, match: re.Match) -> _Place | None:
    length, digits, end = int(IBAN_LENGTHS.get(match[0][:2], 0)), "", match.start()
    while len(digits) < length and end < match.end():
        digits, end = digits + match.string[end].strip(), end + 1
    if len(digits) < length or not length or match.string[end : end + 1].isalnum():
        return None
    number = "".join(str(int(letter, 36)) for letter in digits[4:] + digits[:4])
    return (match.start(), end) if int(number) % 97 == 1 else None


def _ip(step: Personal, match: re.Match) -> _Place | None:
    if VERSION.search(match.string, max(match.start() - 12, 0), match.start()):
        return None
    try:
        return match.span() if ipaddress.ip_address(match[0]).is_global else None
    except ValueError:
        return None


def _card(step: Personal, match: re.Match) -> _Place | None:
    digits = re.sub(r"\D", "", match[0])
    issued = any(re.match(start, digits) and str(len(digits)) in lengths.split("|") for start, lengths in CARD_LENGTHS)
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return match.span() if issued and sum(value // 10 + value % 10 for value in doubled) % 10 == 0 else None


def _national_id(step: Personal, match: re.Match) -> _Place | None:
    text = re.sub(r"[.-]", "", match[0])
    if text[-1].isalpha():
        number = int("XYZ".index(text[0]) if text[0] in "XYZ" else text[0]) * 10**7 + int(text[1:-1])
        valid = DNI_LETTERS[number % 23] == text[-1]
    elif re.fullmatch(r"\d{3}-\d{2}-\d{4}", match[0]):
        valid = text[:3] not in ("000", "666") and text[0] != "9" and text[3:5] != "00" and text[5:] != "0000"
    else:
        pairs = zip(map(int, text[:-1].zfill(7)), (2, 9, 8, 7, 6, 3, 4), strict=True)
        valid = -sum(digit * weight for digit, weight in pairs) % 10 == int(text[-1])
    return match.span() if valid else None


def _phone(step: Personal, match: re.Match) -> _Place | None:
    if OTHER_NUMBER.search(match.string, max(match.start() - CONTEXT, 0), match.start()):
        return None
    try:
        import phonenumbers
    except ImportError:
        raise UserError(
            "the step Personal needs phonenumbers to find telephone numbers: pip install 'jaxlm[corpora]', or leave "
            '"phone" out of its kinds'
        ) from None
    if re.search(r"555\D?01\d\d$", match[0]):
        return None
    start = match.start() + (match[0].startswith("(") and ")" not in match[0])
    for region in ("ZZ",) if "+" in match[0] else step.regions:
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(match[0], region)):
                return start, match.end()
        except phonenumbers.NumberParseException:
            pass
    return None


_CONFIRM: dict[str, Callable] = {
    "secret": _secret, "email": _email, "iban": _iban, "ip": _ip, "card": _card, "id": _national_id, "phone": _phone,
}  # fmt: skip
