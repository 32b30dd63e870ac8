"""The report on a corpus: what is in it, and what each rule dropped, with intervals, as JSON and as a page."""

import html
import json
import math
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from jaxlm.corpora.corpus import Corpus
from jaxlm.corpora.passes import Builder, hex_id, read_lines_of
from jaxlm.errors import UserError
from jaxlm.json_files import read_json

GROUPS = ("source", "license", "language", "script", "year", "domain", "tokens")
MIN_COUNT, TOP_DOMAINS, RESAMPLES, BLOCKS, NORMAL_95 = 50, 100, 1000, 1000, 1.959964
NOT_MEASURED = (
    "names of persons and postal addresses", "truth", "intent", "who is absent from the sources",
    "varieties of a language: markers are words, not dialects", "anything after tokenization",
)  # fmt: skip
AUDIT_STYLE = "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto}td{padding:.2rem .8rem;text-align:left}"


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if not total:
        return 0.0, 1.0
    share, z2 = count / total, NORMAL_95**2
    center, spread = share + z2 / (2 * total), NORMAL_95 * math.sqrt((share * (1 - share) + z2 / (4 * total)) / total)
    return max((center - spread) / (1 + z2 / total), 0.0), min((center + spread) / (1 + z2 / total), 1.0)


def bootstrap_interval(value_D: np.ndarray, size_D: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the ratio of two sums over documents, from resampled documents (blocks of them, if many)."""
    block_D = np.arange(len(value_D)) % BLOCKS
    value_B, size_B = (np.bincount(block_D, array) for array in (value_D, size_D))
    bits = np.random.PCG64(seed).random_raw(RESAMPLES * len(value_B)).reshape(RESAMPLES, -1)
    draw_RB = (bits % np.uint64(len(value_B))).astype(np.int64)
    ratio_R = np.sort(value_B[draw_RB].sum(1) / np.maximum(size_B[draw_RB].sum(1), 1))
    return float(ratio_R[int(0.025 * RESAMPLES)]), float(ratio_R[int(0.975 * RESAMPLES) - 1])


def _share(count: int, total: int) -> dict[str, Any]:
    return {"count": count, "of": total, "share": count / max(total, 1), "interval": wilson_interval(count, total)}


def audit_corpus(folder: Path) -> dict[str, Any]:
    """The figures of a corpus. Raises UserError if the folder holds none."""
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{folder} has no manifest.json: expected the folder of `jaxlm prepare MODULE:NAME --out D`")
    manifest, builder = read_json(folder / "manifest.json"), Builder(Corpus(()), folder)
    names = sorted(file.name.partition(".")[0] for file in builder.parts_folder.glob("*.texts.gz"))
    tables = [np.load(file) for file in sorted(folder.glob("*.docs.npy"))]
    tokens = {hex_id(i): int(n) for table in tables for i, n in zip(table["id"], table["tokens"], strict=True)}
    licenses = {source["name"]: source["license"] for source in manifest["sources"]}
    groups: dict[str, Counter] = {name: Counter() for name in GROUPS}
    kinds: dict[str, list[int]] = {}
    for place, text in enumerate(t for name in names for t in builder.texts(name) if t.id in tokens):
        meta = text.meta
        groups["source"][text.source] += 1
        groups["license"][meta.get("license") or licenses[text.source]] += 1
        groups["language"][meta.get("language") or "unknown"] += 1
        letters = [unicodedata.name(letter, "").partition(" ")[0] for letter in text.text[:200] if letter.isalpha()]
        groups["script"][max(sorted(set(letters)), key=letters.count, default="none").lower()] += 1
        groups["year"][str(meta.get("date", "none"))[:4]] += 1
        groups["domain"][urlsplit(meta.get("url", "")).hostname or "none"] += 1
        groups["tokens"][f"from {10 ** int(math.log10(max(tokens[text.id], 1))):,}"] += 1
        for kind, count in meta.get("masked", {}).items():
            kinds.setdefault(kind, [0] * len(tokens))[place] = count
    report: dict[str, Any] = {"documents": len(tokens), "tokens": sum(tokens.values())}
    for name, counts in groups.items():
        report[f"by {name}"] = {key: _share(n, len(tokens)) for key, n in counts.most_common(TOP_DOMAINS)}
    size_D = np.array(list(tokens.values()), float)
    report["masked per million tokens"] = {
        kind: {"count": sum(counts), "rate": 1e6 * sum(counts) / max(size_D.sum(), 1)}
        | {"interval": [1e6 * edge for edge in bootstrap_interval(np.array(counts, float), size_D)]}
        for kind, counts in sorted(kinds.items())
    }
    decisions = [d for name in names for d in read_lines_of(builder.parts_folder / f"{name}.decisions.gz")]
    report, origin = report | _drops(decisions), {decision[0]: decision[1] for decision in decisions}
    pairs = [(kind, origin.get(i), origin.get(kept)) for i, kind, kept in read_lines_of(folder / "duplicates.gz")]
    report["duplicates"] = {f"{kind}: {a} of {b}": n for (kind, a, b), n in sorted(Counter(pairs).items())}
    return report | {"manifest": manifest["sources"], "not measured": NOT_MEASURED}


def _drops(decisions: list) -> dict[str, Any]:
    """The share that each rule drops: of all documents, of each source, language and group of markers."""
    totals, drops = Counter[tuple]({("all",): len(decisions)}), Counter[tuple]()
    for _, source, language, markers, step, reason, _ in decisions:
        keys = [("source", source), ("language", language or "unknown"), *(("marker", marker) for marker in markers)]
        totals.update(keys)
        drops.update([(step, reason, *key) for key in (("all",), *keys)] if step else [])
        drops.update([("any", "rule", *key) for key in (("all",), *keys)] if step else [])
    shares = {
        f"{step}: {reason}, {' '.join(key)}": _share(count, totals[tuple(key)])
        for (step, reason, *key), count in sorted(drops.items())
        if totals[tuple(key)] >= MIN_COUNT or key == ["all"]
    }
    read = {" ".join(key): _share(count, len(decisions)) for key, count in sorted(totals.items())}
    return {"read": read, "dropped": shares}


def render_audit(report: dict[str, Any], title: str) -> str:
    """The report as a page."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for name, value in report.items():
        parts.append(f"<h2>{html.escape(name)}</h2>")
        if isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
            columns = list(next(iter(value.values())))
            rows = ([key, *(_cell(item[column]) for column in columns)] for key, item in value.items())
            cells = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in (["", *columns], *rows))
            parts.append("<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>")
        else:
            parts.append(f"<pre>{html.escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{AUDIT_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>' + "\n".join(parts) + "</body></html>\n"


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " to ".join(map(_cell, value))
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
