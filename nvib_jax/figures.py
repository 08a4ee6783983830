"""The main figures of a model, with the words in which people read them."""

import math
from collections.abc import Mapping, Sequence

ROWS = (  # metric, its description on a page, format
    ("exact", "sentences reconstructed exactly", "{:.1%}"),
    ("bleu", "reconstruction BLEU (sacrebleu)", "{:.1f}"),
    ("kept_hard", "vectors kept (pseudo-count above threshold)", "{:.1%}"),
    ("kept_soft", "vectors kept (effective number, by attention)", "{:.1%}"),
    ("elbo_token", "ELBO a token, nats", "{:.2f}"),
    ("iwae_token", "importance-weighted bound a token, nats", "{:.2f}"),
    ("in_language", "prior samples in the language", "{:.1%}"),
    ("log_prob", "their exact log-probability, nats", "{:.1f}"),
    ("distinct", "prior samples that are distinct", "{:.1%}"),
)


def in_words(*columns: Mapping[str, float | None]) -> Sequence[tuple[str, list[str]]]:
    """(a figure's description, a cell for each column) of the main figures that the first one has.

    A figure that is no finite number, None in JSON, is "-".

    >>> in_words({"exact": 0.5, "elbo_token": None, "growth": 1.0}, {"exact": 0.25})
    [('sentences reconstructed exactly', ['50.0%', '25.0%']), ('ELBO a token, nats', ['-', '-'])]
    """
    return [
        (label, [_cell(column.get(name), form) for column in columns])
        for name, label, form in ROWS
        if name in columns[0]
    ]


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None or not math.isfinite(value) else form.format(value)
