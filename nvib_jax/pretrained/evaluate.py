"""What a treatment of a model does to texts of another domain: figures, intervals, a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.pretrained.knobs import treated
from nvib_jax.pretrained.model import PretrainedModel
from nvib_jax.pretrained.overlap import SCORES
from nvib_jax.pretrained.readings import Priors
from nvib_jax.pretrained.search import Search, chosen

BINS = 10  # of the calibration error


@dataclass(frozen=True)
class Figures:
    """Of each text, float64 (B,).

    Attributes:
      nats: negative log-probability, summed over tokens.
      tokens: how many.
      right: how many are the likeliest.
      calibration: expected calibration error of all tokens together.
    """

    nats: np.ndarray
    tokens: np.ndarray
    right: np.ndarray
    calibration: float

    def summary(self) -> dict[str, float]:
        """Nats a token, accuracy, exact sentences (all tokens right: so greedy decoding writes
        them) and calibration error."""
        count = self.tokens.sum()
        return {
            "nats": float(self.nats.sum() / count),
            "accuracy": float(self.right.sum() / count),
            "exact": float(np.mean(self.right == self.tokens)),
            "calibration": self.calibration,
        }


def figures(
    model: PretrainedModel,
    prior: Priors,
    found: Search,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    *,
    passes: int = 0,
) -> Figures:
    """Figures of a model treated as a search says.

    Args:
      model, prior: as in the search.
      found: its knobs and form.
      texts, targets: to measure on.
      passes: average the probabilities of this many passes with dropout (Gal & Ghahramani 2016);
        0 is one pass without.
    """
    rows, others = model.rows(texts, targets)
    knobs = {name: jnp.float32(value) for name, value in found.knobs.items()}
    run = model.compiled(treated, form=found.form)
    priors = dict(prior.priors)

    size = len(rows)
    nats, tokens, right = np.zeros(size), np.zeros(size), np.zeros(size)
    confidence, correct = [], []
    for part, batch in model.batches(rows, others):
        keys = (jax.random.split(jax.random.key(int(part[0])), passes),) if passes else ()
        out = jax.device_get(run(model.params, knobs, priors, batch, *keys))
        counted, log_p, log_most = (
            out[name][: len(part)] for name in ("counted", "log_p", "log_most")
        )
        p, most = np.exp(log_p, dtype=np.float64), np.exp(log_most, dtype=np.float64)
        hit = counted & (p >= most * (1 - 1e-6))
        nats[part] = np.sum(np.where(counted, -np.log(np.maximum(p, 1e-300)), 0.0), axis=1)
        tokens[part], right[part] = counted.sum(1), hit.sum(1)
        confidence.append(most[counted])
        correct.append(hit[counted])
    error = calibration_error(np.concatenate(confidence), np.concatenate(correct))
    return Figures(nats, tokens, right, error)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error in ten bins (Guo et al. 2017).

    Args:
      confidence: probability of the likeliest token, in [0, 1].
      right: whether it was the token.

    >>> print(calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([1, 1, 1, 0])))
    0.15
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        (bins == b).mean() * abs(confidence[bins == b].mean() - right[bins == b].mean())
        for b in np.unique(bins)
    ]
    return round(float(sum(gaps)), 6)


def difference(a: Figures, b: Figures, *, draws: int = 1000, seed: int = 0) -> dict[str, float]:
    """Nats a token of `b` less those of `a` on the same texts, with its paired bootstrap interval.

    Returns:
      "difference" (negative: b is better), and "low" and "high" of the 95 % interval over texts.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(a.nats), (draws, len(a.nats)))
    count = a.tokens[picks].sum(1)
    drawn = (b.nats[picks].sum(1) - a.nats[picks].sum(1)) / count
    low, high = np.quantile(drawn, [0.025, 0.975])
    whole = (b.nats.sum() - a.nats.sum()) / a.tokens.sum()
    return {"difference": float(whole), "low": float(low), "high": float(high)}


def written(
    model: PretrainedModel,
    prior: Priors,
    found: Search,
    texts: Sequence[str],
    targets: Sequence[str],
) -> dict[str, float]:
    """Scores and length of what the treated model writes for each text, beside the targets.

    Returns:
      The `overlap.SCORES`, "length_ratio" (words written over words wanted) and
      "length_correlation" (of the two).
    """
    said = chosen(model, prior, found).generate(texts)
    ours, theirs = (np.array([len(t.split()) for t in part], float) for part in (said, targets))
    spread = ours.std() > 0 and theirs.std() > 0
    return {
        **{name: score(said, targets) for name, score in SCORES.items()},
        "length_ratio": float(ours.sum() / theirs.sum()),
        "length_correlation": float(np.corrcoef(ours, theirs)[0, 1]) if spread else 0.0,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of figures, "name" first, as aligned text."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "name"))
    cells = [["", *names]]
    for row in rows:
        numbers = (row.get(name) for name in names)
        shown = [
            "-" if n is None else f"{n:.3f}" if isinstance(n, float) else str(n) for n in numbers
        ]
        cells.append([str(row["name"]), *shown])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def untreated() -> Search:
    """The model as it is."""
    return Search({}, float("nan"))


def as_row(name: str, measured: Figures, base: Figures | None, **more: float) -> dict[str, Any]:
    """A row of `table`: a treatment's figures, and its difference to the model as it is."""
    row: dict[str, Any] = {"name": name, **measured.summary()}
    if base is not None:
        row |= difference(base, measured)
    return row | more
