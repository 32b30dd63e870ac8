"""The passes by tasks of DataTrove, and metadata as Croissant."""

import json
import pickle

import pytest
from fixtures.small_corpus import PART, build, content, corpus

from benchmarks.associations import count_near, log_odds
from jaxlm.corpora.corpus import Terms
from jaxlm.corpora.datatrove import map_share, prepare_write
from jaxlm.corpora.passes import Builder
from jaxlm.data.tokenizers.simple import Bytes
from jaxlm.errors import UserError


def test_tasks_of_datatrove_make_the_same_bytes(folder):
    """Three tasks of each pass, in any order, leave nothing to do; a stream passes through a step."""
    build(folder, "one", corpus())
    builder = Builder(corpus(), folder / "three", 1, PART)
    builder.folder.mkdir()
    assert [list(map_share(builder, ["document"], rank, 3)) for rank in (2, 0, 1)] == [["document"]] * 3
    step = prepare_write(builder, lambda texts: Bytes().fit(iter(texts)))
    step = pickle.loads(pickle.dumps(step))  # as an executor sends it
    for rank in (1, 2, 0):
        assert list(step(None, rank, 3)) == []
    made = []
    notes = dict.fromkeys(("on_part", "on_shard"), lambda record, kept: made.append(kept))
    build(folder, "three", corpus(), **notes)
    assert len(made) > 4 and all(made) and content(folder / "one") == content(folder / "three")


def test_log_odds_of_words_near_groups():
    """Windows of ten words on each side; antisymmetric, and 0 with an interval around it for equal shares."""
    documents = [["she", "nurse", *["x"] * 9, "nurse"], ["he", *["x"] * 10, "nurse"], ["x", "nurse", "he"]] * 40
    counts = count_near(documents, {"she": ["she"], "he": ["he"]})
    assert (counts["she"]["nurse"], counts["he"]["nurse"], counts["all"]["nurse"]) == (40, 40, 160)
    ratio, deviation = log_odds("nurse", counts["she"], counts["he"], counts["all"])
    assert log_odds("nurse", counts["he"], counts["she"], counts["all"]) == (pytest.approx(-ratio), deviation)
    assert log_odds("nurse", counts["she"], counts["she"], counts["all"])[0] == 0 < ratio < 2 * deviation


def test_the_terms_of_a_croissant_file(tmp_path):
    licenses = [
        "https://creativecommons.org/licenses/by-sa/4.0/",
        {"@id": "mit", "url": "https://spdx.org/licenses/MIT"},
    ]
    record = {
        "sc:name": "x",
        "license": licenses,
        "url": "https://a.org",
        "inLanguage": ["es", "en"],
        "creditText": "Ana",
    }
    record |= {"rai:personalSensitiveInformation": ["names"], "rai:dataCollectionTimeframe": ["2019", "2020"]}
    (tmp_path / "c.json").write_text(json.dumps(record))
    terms = Terms.from_croissant(str(tmp_path / "c.json"), consent="license")
    assert (terms.license, terms.url, terms.languages) == ("CC-BY-SA-4.0 AND MIT", "https://a.org", ("es", "en"))
    assert (terms.consent, terms.stated_by, terms.personal_data) == ("license", "publisher", "yes")
    assert (terms.attribution, terms.time_span) == ("Ana", "2019 2020")
    (tmp_path / "c.json").write_text('{"license": "https://a.org/own?x=1"}')
    assert Terms.from_croissant(str(tmp_path / "c.json")).license == "LicenseRef-a.org-own-x-1"
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(UserError, match="expected a data set of Croissant"):
        Terms.from_croissant(str(tmp_path / "c.json"))
