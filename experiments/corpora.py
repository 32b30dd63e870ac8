"""Corpora for pre-training, cleaned and documented by `jaxlm prepare MODULE:NAME --out D`.

    jaxlm prepare experiments.corpora:demo --out shards/demo --vocab-size 8000
    jaxlm audit shards/demo

The words of the markers are examples of varieties of Spanish, counted as markers, not as dialects.
"""

from jaxlm import C4, Corpus, CorpusSource, Duplicates, GopherQuality, GopherRepetition, Licenses, Personal, Terms

MARKERS = {
    "voseo": ("tenés", "podés", "querés", "sabés", "sos"),
    "vosotros": ("vosotros", "tenéis", "podéis", "sabéis", "sois"),
    "computadora": ("computadora", "computadoras"),
    "ordenador": ("ordenador", "ordenadores"),
}


def demo() -> Corpus:
    """300 web documents and Don Quijote: quality, repetition, personal data, duplicates."""
    web = CorpusSource(
        "c4",
        ("c4_sample/c4_demo.jsonl",),
        "json",
        language="en",
        license=Terms("ODC-By-1.0", stated_by="publisher", url="https://huggingface.co/datasets/allenai/c4"),
    )
    book = CorpusSource(
        "quijote",
        ("gutenberg_spa/don_quijote.txt",),
        "block",
        language="es",
        license=Terms(
            "LicenseRef-public-domain", stated_by="publisher", consent="public domain", time_span="1605-1615"
        ),
        after="*** START OF",
        before="*** END OF",
        priority=1,
    )
    steps = (GopherQuality(min_words=20), GopherRepetition(), Personal(regions=("US", "ES")), Duplicates())
    return Corpus((web, book), steps, Licenses(unknown="drop"), markers=MARKERS)


def web() -> Corpus:
    """The web documents alone, by the rules of C4 and Gopher with all their thresholds."""
    (source, _), steps = demo().sources, (C4(), GopherQuality(), GopherRepetition(), Personal(), Duplicates())
    return Corpus((source,), steps)
