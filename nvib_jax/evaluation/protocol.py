"""`nvib evaluate`: all measurements of a trained run, on text it has not seen.

The scores are one flat dict, and the tables are lists of rows. Both are written to
`evaluation.json` in the run's folder, from which the report is made.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nvib_jax.checkpoint.load import load
from nvib_jax.data import PreparedData, default_grammar, prepare
from nvib_jax.data.config import relocated
from nvib_jax.evaluation.causal import measure_causal
from nvib_jax.evaluation.causal_transformer import LanguageModelConfig
from nvib_jax.evaluation.choice import choice, choice_scores
from nvib_jax.evaluation.collapse import collapse_report
from nvib_jax.evaluation.denoising import measure_denoising
from nvib_jax.evaluation.forms import compare_budgets, compare_forms, compare_thresholds
from nvib_jax.evaluation.interpolation import (
    interpolate_pairs,
    interpolation_scores,
    mirrored_pairs,
)
from nvib_jax.evaluation.language_model import LanguageModel
from nvib_jax.evaluation.language_model_training import begin_language_model, reverse_perplexity
from nvib_jax.evaluation.learned_bound import learned_bound
from nvib_jax.evaluation.likelihood import (
    evidence_bound,
    held_out_terms,
    importance_bounds,
    is_variational,
    ratio,
    standard_error,
    token_counts,
)
from nvib_jax.evaluation.reconstruction import reconstruction_scores
from nvib_jax.evaluation.samples import language_scores, sample_scores
from nvib_jax.evaluation.usage import growth, token_usage, usage_by_length, vector_usage
from nvib_jax.fields import check_fields
from nvib_jax.files import write_whole
from nvib_jax.generate import DecodingConfig
from nvib_jax.models.build import family_of
from nvib_jax.models.config import CausalConfig, DenoisingConfig
from nvib_jax.priors import LearnedPrior
from nvib_jax.priors.prior import PRIOR
from nvib_jax.text_model import TextModel

RESULT = "evaluation.json"
SHOWN = 12  # how many sentences, samples and interpolations are kept for a person to read


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured, and on how much."""

    split: Literal["test", "validation"] = "test"
    """Which sentences; settings are chosen on validation."""
    sentences: int = 512
    """Held-out sentences; 0 takes all."""
    samples: int = 1000
    """Prior samples; 0 leaves them out."""
    draws: int = 100
    """Draws a sentence of the importance-weighted bound, the largest k (1 to 10, or a multiple of
    the power of ten below); 0 leaves it out."""
    bound_sentences: int = 64
    """Held-out sentences whose importance-weighted bound is measured; 0 takes all."""
    pairs: int = 128
    """Pairs of sentences to interpolate between; 0 leaves them out."""
    forms: bool = True
    """Compare every way to read a posterior, and thresholds."""
    beams: int = 0
    """Reconstruct by beam search too, with this many beams; 0 does not."""
    language_model: bool = True
    """Train a causal language model on the training sentences (once a corpus) to score samples."""
    reverse_samples: int = 0
    """Prior samples that a causal language model is trained on to score held-out sentences, the
    same for all that are compared; 10,000 are enough for it not to overfit. 0 leaves it out."""
    seed: int = 0
    """Seed of draws and samples."""
    lm: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    """The language model."""

    def __post_init__(self) -> None:
        check_fields(self, "")
        for name in (
            *("sentences", "samples", "draws", "bound_sentences", "pairs", "beams", "seed"),
            "reverse_samples",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 0")


def evaluate_run(
    run: str | os.PathLike[str],
    config: EvaluationConfig | None = None,
    *,
    checkpoint: str = "best",
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure a run on text it has not seen, and write its `evaluation.json`.

    `nvib_jax.evaluate` is this function, and `nvib evaluate` calls it for each run.

    Args:
      run: what `nvib_jax.train` returned, or the folder of a run.
      config: what to measure.
      checkpoint: "best" or "last".
      progress: called with a line of text about what is being measured.

    Returns:
      What was written; a figure that does not exist is None.

    Raises:
      FileNotFoundError: the folder has no checkpoint.
      ValueError: the data have no such split.
    """
    config = config or EvaluationConfig()
    description, params, step = load(run, which=checkpoint)
    model = TextModel(description, params)
    data = prepare(relocated(model.config.data), progress=progress)
    prior = None
    if config.samples and (Path(run) / PRIOR).is_dir():
        try:
            prior = LearnedPrior.load(Path(run) / PRIOR)
            prior.check_fits(params)
        except (FileNotFoundError, ValueError) as error:  # such as another checkpoint's
            progress(f"the learned prior is left out: {error}")
            prior = None
    found = {
        "name": Path(run).name,
        "kind": model.architecture.kind if model.encodes else family_of(model.config.model),
        "checkpoint": checkpoint,
        "step": step,
        "seed": config.seed,
        "options": asdict(config),
        "config": asdict(model.config),
        **measure(model, data, config, prior=prior, progress=progress),
    }
    found = without_nan(found)
    write_whole(Path(run) / RESULT, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def measure(
    model: TextModel,
    data: PreparedData,
    config: EvaluationConfig,
    *,
    prior: LearnedPrior | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The scores and tables of a model on a split of its data, and of a prior fitted to it.

    Of a model that writes no texts there is what its own terms say.
    """
    texts = data.sentences(config.split, config.sentences or None)
    if not (model.encodes and model.writes):
        if isinstance(model.config.model, DenoisingConfig):
            found = measure_denoising(model, texts, seed=config.seed, progress=progress)
            return {"split": config.split, "sentences": len(texts), **found}
        if isinstance(model.config.model, CausalConfig):
            found = measure_causal(
                model, data, texts, samples=config.samples, seed=config.seed, progress=progress
            )
            return {"split": config.split, "sentences": len(texts), **found}
        progress(f"measuring {len(texts)} sentences of the {config.split} split")
        scores: dict[str, Any] = dict(held_out_terms(model, texts, seed=config.seed))
        return {"split": config.split, "sentences": len(texts), "scores": scores}
    if not (config.language_model and (config.samples or config.pairs)):
        return _measure(model, data, config, lambda: None, texts, prior, progress)
    with begin_language_model(data, config.lm, progress) as trained:
        return _measure(model, data, config, trained, texts, prior, progress)


def _measure(
    model: TextModel,
    data: PreparedData,
    config: EvaluationConfig,
    language_model: Callable[[], LanguageModel | None],
    texts: list[str],
    prior: LearnedPrior | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """What `measure` returns. `language_model` waits for its training, so what needs it is last."""
    grammar = model.config.data.source == "grammar"
    progress(f"reconstructing {len(texts)} sentences of the {config.split} split")
    outputs = model.reconstruct(texts, seed=config.seed, clean=False)
    scores = {**reconstruction_scores(texts, outputs), **vector_usage(model, texts)}
    if config.beams:
        how = DecodingConfig(method="beam", beams=config.beams)
        beam = reconstruction_scores(texts, model.reconstruct(texts, decoding=how, clean=False))
        scores |= {f"beam_{name}": beam[name] for name in ("exact", "bleu")}
    lengths = usage_by_length(model, texts)
    scores["growth"] = growth(lengths)
    same = np.array([a == b for a, b in zip(texts, outputs, strict=True)])
    tokens = token_counts(model, texts) - 1
    for row in lengths:
        row["exact"] = float(same[tokens == row["length"]].mean())

    progress("bounding the likelihood")
    scores |= evidence_bound(model, texts, seed=config.seed)
    if config.draws and is_variational(model):
        scores |= bound_scores(model, texts[: config.bound_sentences or None], config, grammar)
    collapse = collapse_report(model, texts, seed=config.seed)
    kl = collapse.pop("kl_per_dimension")
    scores |= collapse

    found: dict[str, Any] = {
        "split": config.split,
        "sentences": len(texts),
        "by_length": lengths,
        "dimensions": {
            "active": collapse["active_dimensions"],
            "passive": collapse["passive_dimensions"],
            "kl": kl,
        },
        "reconstructions": [
            {"text": a, "output": b} for a, b in zip(texts[:SHOWN], outputs, strict=False)
        ],
        "tokens": token_usage(model, texts[: SHOWN // 2]),
    }
    if config.forms:
        progress("comparing the forms")
        found["forms"] = compare_forms(model, texts, seed=config.seed)
        if model.architecture.kind == "NVAE":
            found["thresholds"] = compare_thresholds(model, texts)
            found["budgets"] = compare_budgets(model, texts)
    lm = language_model()
    found["choice"] = choice(model, texts, language_model=lm, grammar=grammar)
    if found["choice"]:
        scores |= choice_scores(found["choice"])
    known = data.sentences("train")
    if config.samples:
        progress(f"drawing {config.samples} samples")
        given = (model, data, config, lm, texts, known)
        standard, samples = _sample_scores(*given)
        scores |= standard
        found["samples"] = samples[:SHOWN]
        if lm is not None:
            scores["data_perplexity"] = lm.perplexity(texts)
        if prior is not None:
            progress(f"drawing {config.samples} samples of the learned prior")
            learned, samples = _sample_scores(*given, prior)
            learned |= learned_bound(model, prior, texts, seed=config.seed)
            scores |= {f"learned_{name}": value for name, value in learned.items()}
            found["learned_samples"] = samples[:SHOWN]
    if config.pairs and len(texts) > 1:  # a single sentence makes no pair
        pairs = mirrored_pairs(texts)[: config.pairs]
        progress(f"interpolating between {len(pairs)} pairs")
        paths = interpolate_pairs(model, pairs, seed=config.seed)
        ways = interpolation_scores(
            pairs, paths, known=frozenset(known), perplexity=lm.perplexity if lm else None
        )
        if grammar:
            ways["in_language"] = language_scores([path[len(path) // 2] for path in paths])[
                "in_language"
            ]
        scores |= {f"interpolation_{name}": value for name, value in ways.items()}
        found["interpolations"] = [
            {"a": a, "b": b, "path": list(path)}
            for (a, b), path in zip(pairs[:SHOWN], paths, strict=False)
        ]
    return {"scores": scores, **found}


def bound_scores(
    model: TextModel, texts: Sequence[str], config: EvaluationConfig, grammar: bool
) -> dict[str, float]:
    """Importance-weighted bounds of a subset, nats, with standard errors over sentences.

    They are "iwae_K_sentence" and "iwae_K_token" for each k; "iwae_*" without a number is for the
    largest k. For the grammar there are also "source_sentence", the log-probability under the
    grammar itself, and "gap_sentence", how far the tightest bound is below it.
    """
    bounds = importance_bounds(model, texts, draws=config.draws, seed=config.seed)
    tokens, found = token_counts(model, texts), {}
    for k, bound in bounds.items():
        for name in {f"iwae_{k}", "iwae"} if k == config.draws else {f"iwae_{k}"}:
            found[f"{name}_sentence"] = float(bound.mean())
            found[f"{name}_sentence_error"] = standard_error(bound)
            found[f"{name}_token"], found[f"{name}_token_error"] = ratio(bound, tokens)
    if grammar:
        source = np.array([default_grammar().log_prob(text) for text in texts])
        gap = source - bounds[config.draws]
        found["source_sentence"] = float(source.mean())
        found["gap_sentence"], found["gap_sentence_error"] = float(gap.mean()), standard_error(gap)
    return found


def _sample_scores(
    model: TextModel,
    data: PreparedData,
    config: EvaluationConfig,
    lm: LanguageModel | None,
    held_out: Sequence[str],
    training: Sequence[str],
    prior: LearnedPrior | None = None,
) -> tuple[dict[str, float], list[str]]:
    """The scores of samples of a prior, and the samples."""
    how: dict[str, Any] = {"decoding": DecodingConfig(method="sample"), "prior": prior}
    samples = model.sample(config.samples, seed=config.seed, **how)
    scores = sample_scores(samples, training=training, language_model=lm, seed=config.seed)
    if config.reverse_samples:
        more = model.sample(config.reverse_samples, seed=config.seed + 1, **how)
        scores["reverse_perplexity"] = reverse_perplexity(
            more, held_out=held_out, tokenizer=data.tokenizer, config=config.lm
        )
    scores = {f"sample_{name}": value for name, value in scores.items()}
    if model.config.data.source == "grammar":
        scores |= language_scores(samples)
    return scores, samples


def without_nan(tree: Any) -> Any:
    """Replace NaN and infinity by None, because JSON has neither."""
    if isinstance(tree, dict):
        return {name: without_nan(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
