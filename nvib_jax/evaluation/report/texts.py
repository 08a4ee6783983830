"""The report's sections with tables and sentences. Each returns html, empty if it has no data."""

import itertools
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from nvib_jax.evaluation.report import html
from nvib_jax.evaluation.report.runs import (
    Run,
    Setting,
    mean_and_deviation,
    runs_of,
    with_part,
)
from nvib_jax.evaluation.report.scores import explained, grouped

_COLUMNS: tuple[tuple[str, str, float, int, Callable | None], ...] = (
    # (score, heading and unit, factor, digits, function that picks the best value)
    ("kept_hard", "kept, %\npseudo-count", 100, 1, None),
    ("kept_soft", "kept, %\nattention", 100, 1, None),
    ("bleu", "BLEU\n0 to 100", 1, 1, max),
    ("exact", "exact\n%", 100, 1, max),
    ("chrf", "chrF\n0 to 100", 1, 1, max),
    ("nats", "nats\na token", 1, 3, min),
    ("elbo_token", "ELBO\nnats/token", 1, 2, max),
    ("iwae_token", "IWAE\nnats/token", 1, 2, max),
    ("in_language", "in language\nsamples, %", 100, 1, max),
    ("forward_perplexity", "perplexity\nsamples", 1, 1, min),
)
_MEANING = (
    "Kept: what the decoder is given of the tokens' vectors, counted by pseudo-count above the "
    "threshold, and as the effective number that attention reads. BLEU and exact: sentences read "
    "without noise and written back. ELBO and IWAE bound the log-probability of a token from "
    "below. In language, perplexity: of sentences written from the prior."
)
_SHOWN = 8  # sentences that are shown at once; the others are folded away


def summary(settings: Sequence[Setting]) -> str:
    """A row for each setting: means and standard deviations over its seeds, the best marked."""
    found, without = with_part(settings, "scores")
    columns = [c for c in _COLUMNS if any(_scores(s, c[0])[0] for s in settings)]
    best = {}
    for name, *_, choose in columns:
        each = [_scores(s, name) for s in settings]
        means = [mean_and_deviation(values)[0] for values, final in each if values and not final]
        best[name] = choose(means) if choose and len(means) > 1 else math.nan
    rows = []
    for i, setting in enumerate(settings):
        knob = " ".join(map(str, setting.knob)) if setting.knob else "–"
        seeds = ", ".join(str(run.config.get("train.seed", "–")) for run in setting.runs)
        cells = [
            _cell(*_scores(setting, name), factor, digits, best[name])
            for name, _, factor, digits, _ in columns
        ]
        name = html.label_html(setting.label, i) + html.small(f"seed {seeds}")
        rows.append([name, escape(setting.kind or "–") + html.small(knob), *cells])
    note = "★ best of its column." * any(map(math.isfinite, best.values()))
    if any(len(setting.runs) > 1 for setting in settings):
        note += " Mean ± standard deviation over seeds."
    if any(_scores(s, name)[1] for s in settings for name, *_ in columns):
        note += (
            " † of scores.json: measured when training ended, on validation sentences, which its "
            "settings were chosen on; nvib evaluate measures on test sentences."
        )
    header = ["run\nseed", "kind\nbottleneck", *(heading for _, heading, *_ in columns)]
    shown = html.table(header, rows, words=2) + html.paragraph(_MEANING) * bool(columns)
    shown += html.paragraph(note.strip()) * bool(note) + "".join(
        map(html.paragraph, _ages(settings))
    )
    folded = html.details("All scores, run by run", _all_scores(found)) if found else ""
    return shown + folded + _differing(settings) + html.missing(without if found else [])


def _ages(settings: Sequence[Setting]) -> list[str]:
    """A sentence for each run whose scores are not of the step at which its curves end."""
    said = []
    for _, run in runs_of(settings):
        if not run.metrics or not run.part("scores"):
            continue
        kind = run.evaluation.get("checkpoint", "best")
        if run.scored_step is None:
            said.append(
                f"The scores of {run.label} are of the {kind} checkpoint of their day; its "
                "evaluation.json does not say of which step, so they may be older than its curves."
            )
        elif run.scored_step < run.last_step:
            said.append(
                f"The scores of {run.label} are of step {run.scored_step:,} (its {kind} checkpoint "
                f"when it was evaluated), while its curves go on to step {run.last_step:,}. The "
                "dashed lines stand at that step."
            )
    return said


def reconstructions(settings: Sequence[Setting]) -> str:
    """The reconstructions of every run for the same sentences."""
    found, without = with_part(settings, "reconstructions")
    if not found:
        return ""
    outputs: dict[str, dict[str, list[str]]] = {}
    for i, run, part in found:
        for pair in part:
            alike = outputs.setdefault(str(pair["text"]), {}).setdefault(str(pair["output"]), [])
            alike.append(html.label_html(run.label, i))
    blocks = []
    for text, made in outputs.items():
        lines = [
            ("all runs" if len(runs) == len(found) > 1 else "".join(runs), _output(text, output))
            for output, runs in made.items()
        ]
        blocks.append(html.comparison("source", text, lines))
    rest = html.details(f"{len(blocks) - _SHOWN} more", "".join(blocks[_SHOWN:]))
    note = (
        '<p class="note"><span class="same">=</span> the sentence itself. '
        "<ins>A word</ins> that is not in the source; <del>a word</del> of the source that is lost."
        "</p>"
    )
    shown = "".join(blocks[:_SHOWN]) + rest * (len(blocks) > _SHOWN)
    return note + shown + html.missing(without)


def _output(text: str, output: str) -> str:
    mark = '<span class="same">=</span> ' if text == output else ""
    return mark + (html.difference(text, output) if output.strip() else "<em>nothing</em>")


def tokens(settings: Sequence[Setting]) -> str:
    """Pseudo-count and share of attention of every token, with the runs in rows."""
    found, without = with_part(settings, "tokens")
    if not found:
        return ""
    sentences: dict[tuple[str, ...], list[tuple[int, Run, dict[str, Any]]]] = {}
    for i, run, part in found:
        for sentence in part:
            words = tuple(map(str, sentence["tokens"]))
            sentences.setdefault(words, []).append((i, run, sentence))
    blocks = []
    for words, readings in sentences.items():
        groups = []
        for name, heading in (
            ("pseudo_counts", "pseudo-count"),
            ("attention", "share of attention"),
        ):
            rows = [
                (html.label_html(run.label, i), values)
                for i, run, sentence in readings
                if len(values := sentence.get(name) or ()) == len(words)
            ]
            groups += [(heading, rows)] if rows else []
        blocks.append(html.heat_table(words, groups))
    note = html.paragraph(
        "The bluer the more, each row on its own scale. A token whose pseudo-count is 0 has no "
        "vector; attention that is missing to 1 goes to the prior's component. Compare sentences: "
        "where the same places are empty in all of them, the place decides and not the word."
    )
    rest = html.details(f"{len(blocks) - 4} more", "".join(blocks[4:])) * (len(blocks) > 4)
    return note + "".join(blocks[:4]) + rest + html.missing(without)


def interpolations(settings: Sequence[Setting]) -> str:
    """The interpolations of every run between pairs of sentences."""
    found, without = with_part(settings, "interpolations")
    if not found:
        return ""
    ways: dict[tuple[str, str], list[str]] = {}
    for i, run, part in found:
        for way in part:
            path = [str(text) for text in way["path"]]
            changes = [html.difference(a, b, lost=False) for a, b in itertools.pairwise(path)]
            steps = [*map(escape, path[:1]), *changes]
            card = html.card(html.label_html(run.label, i), steps, ordered=True)
            ways.setdefault((str(way["a"]), str(way["b"])), []).append(card)
    note = '<p class="note"><ins>A word</ins> that is not in the step before.</p>'
    blocks = [
        f'<h3>{escape(a)} → {escape(b)}</h3><div class="cards">{"".join(cards)}</div>'
        for (a, b), cards in ways.items()
    ]
    rest = html.details(f"{len(blocks) - 3} more", "".join(blocks[3:])) * (len(blocks) > 3)
    return note + "".join(blocks[:3]) + rest + html.missing(without)


def samples(settings: Sequence[Setting]) -> str:
    """Samples from the prior of every run."""
    found, without = with_part(settings, "samples")
    if not found:
        return ""
    cards = [
        html.card(html.label_html(run.label, i), [escape(str(text)) for text in part])
        for i, run, part in found
    ]
    return f'<div class="cards">{"".join(cards)}</div>' + html.missing(without)


def _scores(setting: Setting, name: str) -> tuple[list[float], bool]:
    """(a score of each seed, whether one of them is from `scores.json`)."""
    each = [run.score_or_final(name) for run in setting.runs]
    each = [(value, final) for value, final in each if math.isfinite(value)]
    return [value for value, _ in each], any(final for _, final in each)


def _cell(values: list[float], final: bool, factor: float, digits: int, best: float) -> str:
    if not values:
        return "–"
    mean, deviation = mean_and_deviation(values)
    text = f"{factor * mean:.{digits}f}"
    if math.isfinite(deviation):
        text += f" ± {factor * deviation:.{digits}f}"
    # A true minus is as wide as a plus.
    text = text.replace("-", "−") + "†" * final
    return f'<strong class="best">{text}</strong>' if mean == best else text


def _all_scores(found: Sequence[tuple[int, Run, dict[str, Any]]]) -> str:
    """A table of all scores in groups, with explanations; ± is a standard error over sentences."""
    names = list(dict.fromkeys(name for _, _, scores in found for name in scores))
    tables = []
    for heading, group in grouped(names):
        rows = []
        for name in group:
            phrase, factor = explained(name) or ("", 1.0)
            shown = escape(phrase) + html.small(name) if phrase else escape(name)
            rows.append([shown, *(_with_error(run, name, factor) for _, run, _ in found)])
        tables.append(html.table([heading, *(run.label for _, run, _ in found)], rows))
    return "".join(tables) + html.paragraph("± is one standard error over sentences.")


def _with_error(run: Run, name: str, factor: float) -> str:
    value, error = run.score(name), run.score(f"{name}_error")
    if math.isnan(value):
        return "–"
    large = abs(factor * value) >= 10_000
    text = f"{factor * value:,.0f}" if large else f"{factor * value:.4g}"
    text += f" ± {factor * error:.2g}" * math.isfinite(error)
    return text.replace("-", "−")


def _differing(settings: Sequence[Setting]) -> str:
    """The fields of the config in which settings differ."""
    known = [s for s in settings if s.runs[0].config]
    rows = []
    for field in dict.fromkeys(field for s in known for field in s.runs[0].config):
        values = [str(s.runs[0].config.get(field, "–")) for s in known]
        if len(set(values)) > 1 and field not in ("train.seed", "train.run_dir"):
            rows.append([escape(field), *map(escape, values)])
    if not rows:
        return ""
    return html.details(
        "Settings that differ", html.table(["field", *(s.label for s in known)], rows)
    )
