"""Writes the report: reads run folders and writes one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from nvib_jax.evaluation.report import figures, html, stack, texts
from nvib_jax.evaluation.report.choice import choice
from nvib_jax.evaluation.report.runs import Setting, group, read_run
from nvib_jax.files import write_whole

_SECTIONS = (  # id, heading, settings -> html
    ("runs", "Runs side by side", texts.summary),
    ("curves", "Training curves", figures.curves),
    ("rate-distortion", "Rate and distortion", figures.rate_distortion),
    ("reconstructions", "Reconstructions", texts.reconstructions),
    ("tokens", "What each token's vector weighs", texts.tokens),
    ("choice", "Which vectors are kept", choice),
    ("lengths", "Vectors against length", figures.lengths),
    ("forms", "Ways to read a posterior", figures.forms),
    ("thresholds", "Dropping small pseudo-counts", figures.thresholds),
    ("budgets", "A budget at reading", figures.budgets),
    ("dimensions", "KL per latent dimension", figures.dimensions),
    ("layers", "What the NVIB layers keep", stack.layers),
    ("noise", "Noise in characters", stack.noise),
    ("segments", "Segments", stack.segments),
    ("probes", "Linear probes", stack.probes),
    ("interpolations", "Interpolations", texts.interpolations),
    ("samples", "Samples from the prior", texts.samples),
)


STACKS = ("denoising", "causal_lm")  # families of models with NVIB in their layers
_OF_STACKS = ("layers", "noise", "segments", "probes")  # sections that only those have
_OF_ALL = ("runs", "curves")  # sections that every model has; the others are of latents


def write_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Compare runs in one page that needs no network.

    Args:
      runs: run folders, at least one; each has `metrics.jsonl`, `evaluation.json` or both.
      out: the page, such as `report.html`; its folder is made if missing.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: a folder is not a run.
      ValueError: no runs, or an evaluation is not a JSON object.
    """
    folders = list({Path(run).resolve(): Path(run) for run in runs}.values())
    if not folders:
        raise ValueError("no runs to report on; wanted at least one run folder")
    settings = group([read_run(folder) for folder in folders])
    labels = [setting.label for setting in settings]
    sections = [(name, heading, section(settings)) for name, heading, section in _SECTIONS]
    stacked = {setting.kind in STACKS for setting in settings}
    # A part is wanting where there is a model that could have it.
    empty = [
        heading
        for name, heading, shown in sections
        if not shown and (name in _OF_ALL or (name in _OF_STACKS) in stacked)
    ]
    header = _header(settings, empty)
    title = "NVIB runs: " + ", ".join(labels[:4]) + (", ..." if len(labels) > 4 else "")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    page = html.page(title, header, [section for section in sections if section[2]])
    write_whole(out, page)
    return out


def _header(settings: Sequence[Setting], empty: Sequence[str]) -> str:
    runs = [run for setting in settings for run in setting.runs]
    parts = [f"{_count(len(runs), 'run')} of {_count(len(settings), 'setting')}."]
    scored = [run.evaluation for run in runs if run.part("split")]
    seen = {f"{e.get('sentences', 'some')} sentences of the {e['split']} split" for e in scored}
    if seen:
        parts.append(f"Evaluated on {' or '.join(sorted(seen))}.")
    without = [run for run in runs if not run.evaluation]
    for these, what in (
        ([run.label for run in without if run.final], "so the figures of its training's end alone"),
        ([run.label for run in without if not run.final], "so curves only"),
    ):
        if these:
            parts.append(f"Without evaluation.json, {what}: {', '.join(these)}.")
    if len(settings) == 1 and runs[0].part("scores") and "Rate and distortion" in empty:
        empty = [heading for heading in empty if heading != "Rate and distortion"]
        parts.append("Rate and distortion are shown for two settings or more.")
    if empty:
        parts.append(f"Left out for want of data: {', '.join(empty)}.")
    return html.paragraph(" ".join(parts))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
