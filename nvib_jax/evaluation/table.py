"""Tables that compare evaluations: a line for each setting, means and deviations over seeds.

A sweep saves all scores of its runs in one file, `scores.json`, which is small enough for git. The
README's table is made from such a file.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvib_jax.evaluation.report.runs import Run, group, mean_and_deviation, read_run
from nvib_jax.files import write_whole

# (score, heading, factor, decimals, explanation)
COLUMNS = (
    ("kept_hard", "kept %", 100, 0, "tokens whose vector the decoder is given, by pseudo-count"),
    ("kept_soft", "read %", 100, 0, "vectors that attention reads, effective number"),
    ("growth", "growth", 1, 2, "exponent of vectors against length, 1 is a constant share"),
    ("choice_position", "R2 place", 1, 2, "of which vectors are kept, explained by the position"),
    ("choice_word", "R2 word", 1, 2, "the same, explained by the word"),
    (
        "choice_information",
        "r info",
        1,
        2,
        "correlation of kept vectors with -log p(text), at equal length",
    ),
    ("bleu", "BLEU", 1, 1, "of what comes back, read without noise, 0 to 100"),
    ("exact", "exact %", 100, 1, "sentences that come back letter by letter"),
    ("chrf", "chrF", 1, 1, "likewise of characters, 0 to 100"),
    ("nats", "nats/token", 1, 3, "cross-entropy under teacher forcing"),
    ("noise_chrf_20", "chrF, noise", 1, 1, "with noise in a fifth of the characters"),
    ("noise_nats_20", "nats, noise", 1, 3, "and its cross-entropy"),
    ("segments_word_f1", "words F1", 1, 2, "segments by attention that are words"),
    ("segments_boundary_f1", "ends F1", 1, 2, "ends of segments that are ends of words"),
    ("fixed_word_f1", "fixed F1", 1, 2, "the first for segments of the best fixed width"),
    ("random_word_f1", "random F1", 1, 2, "and for as many segments at random"),
    ("random_boundary_f1", "random ends", 1, 2, "the second for those"),
    ("kept_1", "kept 1 %", 100, 0, "vectors that the first NVIB layer keeps, by pseudo-count"),
    ("kept_2", "kept 2 %", 100, 0, "and the second"),
    ("probe_word", "word %", 100, 0, "words that a linear probe finds in the last layer"),
    ("elbo_token", "ELBO/token", 1, 2, "bound on the log-probability, nats"),
    ("iwae_token", "IWAE/token", 1, 2, "the tighter, importance-weighted bound, nats"),
    ("in_language", "in lang. %", 100, 1, "samples of the prior that the grammar's parser accepts"),
    (
        "sample_forward_perplexity",
        "sample PPL",
        1,
        1,
        "of samples, under a language model of the data",
    ),
    ("sample_reverse_perplexity", "reverse PPL", 1, 1, "of the data, under one of samples"),
    ("sample_memorised", "memor. %", 100, 1, "samples that are training sentences"),
    ("interpolation_bleu_a", "half to a", 1, 1, "BLEU of half-way sentences to the first end"),
    ("interpolation_bleu_b", "half to b", 1, 1, "and to the second"),
    ("interpolation_new", "new %", 100, 0, "half-way sentences that are neither end's nor known"),
    ("interpolation_in_language", "half in lang. %", 100, 1, "those that the parser accepts"),
    ("active_dimensions", "active", 1, 0, "latent dimensions whose means differ between vectors"),
)


def score_table(runs: Sequence[Run], columns: Sequence[str] = (), *, markdown: bool = False) -> str:
    """The main scores of evaluated runs, without columns that no run has.

    `legend` explains the columns.

    Args:
      runs: from `read_runs` or `load_scores`.
      columns: names of scores in `COLUMNS`; none means all.
      markdown: a table for a README instead of aligned text.
    """
    settings = group(runs)
    rows = [["", "seeds"], *([s.label, str(len(s.runs))] for s in settings)]
    for name, heading, factor, decimals, _ in COLUMNS:
        if not _shown(runs, name, columns):
            continue
        values = [[v for run in s.runs if math.isfinite(v := run.score(name))] for s in settings]
        rows[0].append(heading)
        for row, found in zip(rows[1:], values, strict=True):
            row.append(_cell([v * factor for v in found], decimals))
    if markdown:
        rows.insert(1, ["---", *("--:" for _ in rows[0][1:])])
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def legend(runs: Sequence[Run], columns: Sequence[str] = ()) -> str:
    """One line that explains each column that `score_table` shows for these runs."""
    lines = [(h, phrase) for name, h, _, _, phrase in COLUMNS if _shown(runs, name, columns)]
    width = max((len(heading) for heading, _ in lines), default=0)
    return "\n".join(f"{heading.ljust(width)}  {phrase}" for heading, phrase in lines)


def _shown(runs: Sequence[Run], name: str, columns: Sequence[str]) -> bool:
    wanted = not columns or name in columns
    return wanted and any(math.isfinite(run.score(name)) for run in runs)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read the folders of runs.

    Raises:
      FileNotFoundError: a folder is not a run.
    """
    return [read_run(Path(folder)) for folder in folders]


def save_scores(runs: Sequence[Run], path: str | Path) -> None:
    """Save each run's name, kind, split, scores, and the fields in which the configs differ."""
    kept = ("name", "kind", "split", "sentences", "scores")
    names = {name for run in runs for name in run.config}
    differ = {n for n in names if len({json.dumps(run.config.get(n)) for run in runs}) > 1}
    differ = (differ | {"model.kind"}) - {"train.run_dir"}
    records = [
        {
            **{k: run.evaluation.get(k) for k in kept},
            "config": {n: v for n, v in run.config.items() if n in differ},
        }
        for run in runs
    ]
    lines = ",\n".join(json.dumps(_rounded(record)) for record in records)
    write_whole(path, f"[\n{lines}\n]\n")


def load_scores(path: str | Path) -> list[Run]:
    """Read what `save_scores` wrote."""
    records = json.loads(Path(path).read_text(encoding="utf-8"))
    return [Run(Path(r["name"]), r["name"], r["name"], r["config"], [], r) for r in records]


def _rounded(tree: Any) -> Any:
    """Round all floats to six digits, because the rest is noise."""
    if isinstance(tree, dict):
        return {name: _rounded(value) for name, value in tree.items()}
    return float(f"{tree:.6g}") if isinstance(tree, float) else tree


def _cell(values: Sequence[float], decimals: int) -> str:
    if not values:
        return "-"
    mean, deviation = mean_and_deviation(values)
    spread = f" ±{deviation:.{decimals}f}" if math.isfinite(deviation) else ""
    return f"{mean:.{decimals}f}{spread}"
