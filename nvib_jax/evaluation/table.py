"""Evaluations side by side, as text: a line for each setting, means and deviations over seeds."""

import math
from collections.abc import Sequence
from pathlib import Path

from nvib_jax.evaluation.report.runs import group, mean_and_deviation, read_run

# score, heading, factor, decimals
COLUMNS = (
    ("kept_hard", "kept %", 100, 0),
    ("kept_soft", "read %", 100, 0),
    ("growth", "growth", 1, 2),
    ("bleu", "BLEU", 1, 1),
    ("exact", "exact %", 100, 1),
    ("elbo_token", "ELBO/token", 1, 2),
    ("iwae_token", "IWAE/token", 1, 2),
    ("in_language", "in lang. %", 100, 1),
    ("sample_forward_perplexity", "sample PPL", 1, 1),
    ("sample_reverse_perplexity", "reverse PPL", 1, 1),
    ("sample_memorised", "memor. %", 100, 1),
    ("interpolation_bleu_a", "half to a", 1, 1),
    ("interpolation_bleu_b", "half to b", 1, 1),
    ("interpolation_new", "new %", 100, 0),
    ("interpolation_in_language", "in lang. %", 100, 1),
    ("active_dimensions", "active", 1, 0),
)


def score_table(folders: Sequence[str | Path]) -> str:
    """The main scores of evaluated runs; columns that no run has are left out.

    "kept" is the share of vectors above the pseudo-count threshold, "read" the effective share by
    attention, "growth" the exponent of vectors kept against length, "half to a" BLEU of the
    sentence half way to either end of an interpolation; bounds are nats a token.

    Raises:
      FileNotFoundError: a folder that is no run.
    """
    settings = group([read_run(Path(folder)) for folder in folders])
    rows = [["", "seeds"], *([s.label, str(len(s.runs))] for s in settings)]
    for name, heading, factor, decimals in COLUMNS:
        values = [[v for run in s.runs if math.isfinite(v := run.score(name))] for s in settings]
        if not any(values):
            continue
        rows[0].append(heading)
        for row, found in zip(rows[1:], values, strict=True):
            row.append(_cell([v * factor for v in found], decimals))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def _cell(values: Sequence[float], decimals: int) -> str:
    if not values:
        return "-"
    mean, deviation = mean_and_deviation(values)
    spread = f" ±{deviation:.{decimals}f}" if math.isfinite(deviation) else ""
    return f"{mean:.{decimals}f}{spread}"
