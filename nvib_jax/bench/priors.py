"""Samples of one trained model under several priors, in one table: python -m nvib_jax.bench.priors.

Rows: the data; the standard prior; a flow and a mixture of Gaussians fitted to the latents; and a
causal language model, by itself and encoded (`nvib_jax.priors.texts`). All texts are written by
sampling tokens, and greedily where that is said.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from nvib_jax.data import prepare
from nvib_jax.data.config import relocated
from nvib_jax.evaluation.causal_transformer import LanguageModelConfig
from nvib_jax.evaluation.language_model_training import cached_language_model
from nvib_jax.evaluation.learned_bound import learned_bound
from nvib_jax.evaluation.likelihood import evidence_bound, token_counts
from nvib_jax.evaluation.samples import language_scores, sample_scores
from nvib_jax.files import write_whole
from nvib_jax.generate import DecodingConfig
from nvib_jax.priors import LearnedPrior, PriorConfig, fit_prior
from nvib_jax.progress import to_standard_error
from nvib_jax.text_model import TextModel


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared."""

    run: tyro.conf.Positional[Path]
    """Folder of a run."""
    out: tyro.conf.Positional[Path]
    """JSON file, to which rows are added; rows that it has are not measured again."""
    language_model: Path | None = None
    """Folder of a causal language model's run, a prior too."""
    judge: Path | None = None
    """Folder of a causal language model's run that scores the samples; None trains the one of
    `nvib evaluate`."""
    samples: int = 1000
    """Samples of each prior."""
    seed: int = 0
    """Seed of fitting and samples."""


@dataclass(frozen=True)
class Judge:
    """A trained causal language model as what scores samples."""

    model: TextModel

    def perplexity(self, texts: Sequence[str]) -> float:
        """`exp(-sum of log p / sum of tokens)` of those that are not empty, ends counted."""
        written = [text for text in texts if text]
        nats = -self.model.score(written, clean=False).sum()
        return float(np.exp(nats / token_counts(self.model, written).sum()))


def main(options: Options) -> None:
    """Measure the rows that the file lacks."""
    model = TextModel.load(options.run)
    data = prepare(relocated(model.config.data), progress=to_standard_error)
    judge: Any = (
        cached_language_model(data, LanguageModelConfig(), to_standard_error)
        if options.judge is None
        else Judge(TextModel.load(options.judge))
    )
    rows: list[dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else []
    held = data.sentences("test", options.samples)
    texts = data.sentences("train")

    def fitted(kind: Any) -> LearnedPrior:
        return fit_prior(
            model, texts, PriorConfig(kind=kind, seed=options.seed), progress=to_standard_error
        )

    def add(name: str, measure: Callable[[], dict[str, Any]]) -> None:
        key = {"run": options.run.name, "prior": name, "seed": options.seed}
        if any(all(row[k] == v for k, v in key.items()) for row in rows):
            return
        begun = time.monotonic()
        rows.append(key | measure() | {"seconds": round(time.monotonic() - begun)})
        write_whole(options.out, json.dumps(rows, indent=1) + "\n")
        to_standard_error(json.dumps(rows[-1]))

    def scored(written: list[str]) -> dict[str, Any]:
        grammar = model.config.data.source == "grammar"
        return scores_of(written, texts, judge, grammar, options.seed)

    def sampled(prior: Any = None) -> dict[str, Any]:
        drawn: dict[str, Any] = {"prior": prior, "seed": options.seed}
        written = model.sample(options.samples, decoding=DecodingConfig(method="sample"), **drawn)
        greedy = scored(model.sample(options.samples, **drawn))
        return scored(written) | {f"greedy_{name}": value for name, value in greedy.items()}

    def learned(kind: str) -> dict[str, Any]:
        begun, prior = time.monotonic(), fitted(kind)
        fitting = round(time.monotonic() - begun)
        bound = learned_bound(model, prior, held[:256], seed=options.seed)
        return sampled(prior) | bound | {"fitting_seconds": fitting}

    add("data", lambda: scored(held))
    add("standard", lambda: sampled() | evidence_bound(model, held[:256], seed=options.seed))
    if options.language_model is not None:
        source = TextModel.load(options.language_model)
        how = DecodingConfig(method="sample")
        add(
            "language model alone",
            lambda: scored(source.sample(options.samples, decoding=how, seed=options.seed)),
        )
        add("language model", lambda: sampled(source))
    for kind in ("gaussians", "flow"):
        add(kind, functools.partial(learned, kind))


COLUMNS = (  # score, heading, factor, digits
    ("in_language", "in language %", 100, 1),
    ("greedy_in_language", "greedily %", 100, 1),
    ("log_prob", "their log p", 1, 1),
    ("words", "words", 1, 1),
    ("self_bleu", "self-BLEU", 1, 1),
    ("distinct_2", "distinct-2 %", 100, 1),
    ("memorised", "memorised %", 100, 1),
    ("forward_perplexity", "PPL", 1, 1),
    ("elbo_token", "bound, nats a token", 1, 1),
)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table: means over models, +- their standard deviation where there are several.

    A score that no row has is no column: only a grammar says what is in its language.
    """
    columns = [column for column in COLUMNS if any(column[0] in row for row in rows)]
    heads = ["", "models", *(heading for _, heading, _, _ in columns)]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for name in dict.fromkeys(row["prior"] for row in rows):
        here = [row for row in rows if row["prior"] == name]
        cells = [name, str(len(here))]
        for score, _, factor, digits in columns:
            values = np.array([factor * row[score] for row in here if score in row])
            cell = f"{values.mean():.{digits}f}" if len(values) else "-"
            if len(values) > 1:
                cell += f" ± {values.std(ddof=1):.{digits}f}"
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scores_of(
    written: list[str], texts: list[str], judge: Any, grammar: bool, seed: int
) -> dict[str, Any]:
    """The scores of samples, and twelve of them, the first and not the best."""
    found: dict[str, Any] = sample_scores(written, training=texts, language_model=judge, seed=seed)
    if grammar:
        found |= language_scores(written)
    return found | {"texts": written[:12]}


if __name__ == "__main__":
    main(tyro.cli(Options))
