"""jaxlm: every sequence model of the textbook, under one contract."""

__version__ = "0.1.0"
