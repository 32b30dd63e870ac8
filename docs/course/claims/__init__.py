"""The claims of the course: each trains what it needs, measures, checks itself and draws its figure.

One module a page; `python -m docs.course.claims` runs them. The functions that are annotated `-> Experiment` are
experiments like any other: `jaxlm train docs.course.claims.order:bag --workdir runs/bag`.
"""

MODULES = ("order", "vectors", "recurrent", "ngrams")
"""The modules in the order of the pages."""
