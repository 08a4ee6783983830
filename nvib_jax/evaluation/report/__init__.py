"""`nvib report RUN [RUN ...]`: one HTML page that compares runs, for a person.

A run brings its `metrics.jsonl`, its `config.json` and, once `nvib evaluate` has seen it, its
`evaluation.json`. Runs that differ in nothing but their seed are one *setting*: one row, one
colour.

page.py     the sections in order, and `write_report`
runs.py     run folders to settings
figures.py  the sections that are figures
texts.py    the sections that are tables and sentences
scores.py   what every score is, in a phrase
html.py     the pieces of a page
"""

from nvib_jax.evaluation.report.page import write_report

__all__ = ["write_report"]
