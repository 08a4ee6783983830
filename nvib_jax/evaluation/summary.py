"""The short evaluation at the end of a training run, and its page of text."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from nvib_jax.data import PreparedData
from nvib_jax.evaluation import causal, denoising
from nvib_jax.evaluation.likelihood import evidence_bound
from nvib_jax.evaluation.reconstruction import reconstruction_scores
from nvib_jax.evaluation.samples import language_scores
from nvib_jax.evaluation.usage import vector_usage
from nvib_jax.figures import in_words
from nvib_jax.files import write_whole
from nvib_jax.generate import DecodingConfig
from nvib_jax.models.config import CausalConfig, DenoisingConfig
from nvib_jax.processes import is_first
from nvib_jax.text.engine import COUNTED
from nvib_jax.text_model import TextModel

SAMPLES = DecodingConfig(method="sample")
SUMMARY_SAMPLES = 1000  # prior samples scored at the end, if the true language (grammar) is known
Scores = dict[str, float]


def evaluate(
    model: TextModel, texts: Sequence[str], *, samples: int = 0, seed: int = 0
) -> dict[str, float]:
    """Reconstruction, usage and bound on held-out texts; for the grammar also prior samples.

    Args:
      model: the model.
      texts: held-out sentences, at least one.
      samples: prior samples to score against the embedded grammar; 0 for other sources.
      seed: of draws and samples.

    Returns:
      The metrics of `reconstruction_scores`, `vector_usage`, `evidence_bound`, `language_scores`.

    >>> scores = evaluate(model, texts)
    >>> 0 <= scores["exact"] <= 1
    True
    """
    scores = reconstruction_scores(texts, model.reconstruct(texts, seed=seed, clean=False))
    scores |= vector_usage(model, texts)
    scores |= evidence_bound(model, texts, seed=seed)
    if samples:
        scores |= language_scores(model.sample(samples, decoding=SAMPLES, seed=seed))
    return scores


def summarize(
    model: TextModel,
    texts: Sequence[str],
    scores: dict[str, float],
    untrained: dict[str, float],
    *,
    seed: int = 0,
) -> str:
    """A page of text: the scores beside an untrained model's, and example outputs.

    Args:
      model: the trained model.
      texts: held-out sentences, at least one.
      scores: of the model, from `evaluate`.
      untrained: of the same model before training.
      seed: of the samples.

    >>> scores = evaluate(model, texts)
    >>> print(summarize(model, texts, scores, scores).splitlines()[0].split())
    ['trained', 'untrained']
    """
    lines = [f"{'':<48}{'trained':>10}{'untrained':>12}"]
    for label, cells in in_words(scores, untrained):
        lines.append(f"{label:<48}{cells[0]:>10}{cells[1]:>12}")
    lines += ["", "Reconstructions of held-out sentences (= is exact)"]
    shown = model.reconstruct(texts[:6], seed=seed, clean=False)
    for text, back in zip(texts[:6], shown, strict=True):
        lines += [f"  in   {text}", f"  {'=' if text == back else '~'} out {back}"]
    lines += ["", "Samples from the prior"]
    lines += [f"  {text}" for text in model.sample(6, decoding=SAMPLES, seed=seed)]
    ends = sorted(texts[:50], key=len)
    a, b = ends[len(ends) // 3], ends[len(ends) // 2]
    path = model.interpolate(a, b, steps=5, seed=seed, clean=False)
    lines += ["", "Interpolation", f"  a    {a}", f"  b    {b}"]
    lines += [f"  {t:.2f} {text}" for t, text in zip((0, 0.25, 0.5, 0.75, 1), path, strict=True)]
    lines += ["", "Half way between pairs"]
    for a, b in zip(ends[10:40:12], ends[12:42:12], strict=True):
        half = model.interpolate(a, b, steps=3, seed=seed, clean=False)[1]
        lines += [f"  a    {a}", f"  b    {b}", f"  half {half}"]
    return "\n".join(lines)


def summarize_run(model: TextModel, data: PreparedData, say: Callable[[str], None]) -> Scores:
    """Measure a trained model beside an untrained one, and write the page into the run's folder.

    All processes of a run call it together, and the first one writes. A model that writes no text
    has no page.

    Args:
      model: the trained model; its config names the folder.
      data: of the run.
      say: prints the page.

    Returns:
      The metrics of `evaluate`.
    """
    if isinstance(model.config.model, DenoisingConfig | CausalConfig):
        return _summarize_stack(model, data, say)
    if not (model.encodes and model.writes):
        say("no page: the model writes no text; its figures are in metrics.jsonl")
        return {}
    config = model.config
    say("measuring on held-out sentences, beside the same model untrained")
    texts = data.sentences(data.held_out, config.train.eval_sentences)
    samples = SUMMARY_SAMPLES if config.data.source == "grammar" else 0
    # The untrained model is a `replace` of the trained one, so they share compiled functions.
    fresh = dataclasses.replace(model, params=model.description.fresh())
    fresh = fresh.counted(data.sentences("train", COUNTED))
    scores, untrained = (
        evaluate(each, texts, samples=samples, seed=config.train.seed) for each in (model, fresh)
    )
    page = summarize(model, texts, scores, untrained, seed=config.train.seed)
    if is_first():
        write_summary(config.train.run_dir, page, {"trained": scores, "untrained": untrained})
    say(f"\n{page}")
    return scores


def _summarize_stack(model: TextModel, data: PreparedData, say: Callable[[str], None]) -> Scores:
    """As `summarize_run`, of a model with NVIB in its layers."""
    config = model.config
    say("measuring on held-out sentences")
    texts = data.sentences(data.held_out, config.train.eval_sentences)
    seed = config.train.seed
    if isinstance(config.model, CausalConfig):
        found = causal.measure_causal(model, data, texts, samples=SUMMARY_SAMPLES, seed=seed)
        text = causal.page(found)
    else:
        found = denoising.measure_denoising(model, texts, seed=seed, quick=True)
        text = denoising.page(found)
    if is_first():
        write_summary(config.train.run_dir, text, {"trained": found["scores"]})
    say(f"\n{text}")
    return found["scores"]


def write_summary(run_dir: str | Path, page: str, scores: dict[str, dict[str, float]]) -> None:
    """Write the page as `summary.txt` and the figures as `scores.json` into the run's folder."""
    folder = Path(run_dir)
    write_whole(folder / "summary.txt", page + "\n")
    known = {  # JSON has no NaN: a figure that does not exist is null
        name: {k: v if math.isfinite(v) else None for k, v in figures.items()}
        for name, figures in scores.items()
    }
    write_whole(folder / "scores.json", json.dumps(known, indent=2) + "\n")
