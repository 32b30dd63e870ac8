"""Croissant, the metadata of data sets as JSON-LD (Akhtar et al. 2024): written of a corpus, read of a source."""

import re
from collections.abc import Sequence
from typing import Any

from jaxlm.data.files import find_file
from jaxlm.json_files import read_json

CROISSANT_CONTEXT = {"@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/"} | {
    "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/", "conformsTo": "dct:conformsTo",
}  # fmt: skip
SPDX_ADDRESS = re.compile(r"spdx\.org/licenses/([\w.+-]+?)(?:\.html|\.json)?$")
CC_ADDRESS = re.compile(r"creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)/(\d\.\d)")


def croissant_record(name: str, sources: Sequence[dict], steps: Sequence[Any]) -> dict[str, Any]:
    """The metadata of a corpus by its entries of the manifest and its steps: the sources' files and terms."""
    files = [
        {"@type": "cr:FileObject", "@id": path, "name": path, "sha256": digest, "encodingFormat": "text/plain"}
        | {"contentUrl": source["url"] or path, "description": f"{source['name']}: {source['license']}"}
        for source in sources
        for path, digest in source["sha256"].items()
    ]
    counts = f"{sum(s['documents_out'] for s in sources):,} documents, {sum(s['tokens_out'] for s in sources):,} tokens"
    record: dict[str, Any] = {"@context": CROISSANT_CONTEXT, "@type": "sc:Dataset", "name": name}
    record["conformsTo"] = [f"{CROISSANT_CONTEXT['cr']}1.1", f"{CROISSANT_CONTEXT['rai']}1.0"]
    record["description"] = f"{counts} of {', '.join(source['name'] for source in sources)}"
    record["distribution"] = files
    fields = {"license": "license", "attribution": "creditText", "url": "isBasedOn"}
    for field, key in (fields | {"time_span": "rai:dataCollectionTimeframe"}).items():
        record[key] = sorted({source[field] for source in sources} - {""})
    spdx = re.compile(r"^(?!NOASSERTION|LicenseRef)[\w.+-]+$")
    record["license"] = [spdx.sub(r"https://spdx.org/licenses/\g<0>", text) for text in record["license"]]
    record["inLanguage"] = sorted({code for source in sources for code in source["languages"]})
    record["rai:personalSensitiveInformation"] = [f"{s['name']}: {s['personal_data']}" for s in sources]
    return record | {"rai:dataPreprocessingProtocol": list(map(repr, steps))}


def croissant_terms(path: str) -> dict[str, Any]:
    """The fields of `Terms` that a Croissant file states. Raises UserError if it is none."""
    record = read_json(find_file(path), dict[str, Any], "expected a data set of Croissant, a JSON object")

    def texts(name: str) -> list[str]:
        value = record.get(name, record.get(f"sc:{name}"))
        items = value if isinstance(value, list) else [value]
        values = (item.get("url", item.get("name")) if isinstance(item, dict) else item for item in items)
        return [text for text in values if isinstance(text, str)]

    terms = {"license": " AND ".join(dict.fromkeys(map(_spdx, texts("license")))), "url": " ".join(texts("url")[:1])}
    terms["license_url"] = " ".join(text for text in texts("license") if "://" in text)
    terms |= {"attribution": " ".join(texts("creditText")), "time_span": " ".join(texts("rai:dataCollectionTimeframe"))}
    terms["personal_data"] = "yes" if texts("rai:personalSensitiveInformation") else ""
    stated = {name: text for name, text in terms.items() if text}
    return stated | {"stated_by": "publisher", "languages": tuple(texts("inLanguage"))}


def _spdx(license: str) -> str:
    """The SPDX identifier of the address of a license, `LicenseRef-` for another address, or the text itself."""
    if match := SPDX_ADDRESS.search(license):
        return match[1]
    if match := CC_ADDRESS.search(license):
        return "CC0-1.0" if match[1] == "zero" else f"CC-{match[1].upper()}-{match[2]}"
    address = license.partition("://")[2]
    return "LicenseRef-" + re.sub(r"[^\w.-]+", "-", address).strip("-") if address else license
