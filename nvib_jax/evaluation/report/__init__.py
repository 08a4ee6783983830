"""`nvib report RUN [RUN ...]`: one HTML page that compares runs.

It reads each run's `metrics.jsonl`, `config.json` and, if `nvib evaluate` has written it,
`evaluation.json`. Runs that differ only in their seed form one *setting*, with one row and one
colour.

page.py     the sections in order, and `write_report`
runs.py     reads run folders and groups them to settings
figures.py  the sections with figures
texts.py    the sections with tables and sentences
scores.py   a short explanation of every score
html.py     the elements of a page
"""

from nvib_jax.evaluation.report.page import write_report

__all__ = ["write_report"]
