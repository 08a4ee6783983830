"""The report's sections on models with NVIB in their layers: noise, segments, layers, probes."""

from collections.abc import Sequence
from html import escape

import numpy as np

from nvib_jax import plots
from nvib_jax.evaluation.report import html
from nvib_jax.evaluation.report.runs import Setting, with_part


def layers(settings: Sequence[Setting]) -> str:
    """A row for each NVIB layer of each run: what it keeps, and what explains that."""
    found, _ = with_part(settings, "layers")
    rows = []
    for i, run, part in found:
        for row in part:
            rows.append(
                [
                    html.label_html(run.label, i),
                    str(row["layer"]),
                    *(f"{100 * row[name]:.1f}" for name in ("kept", "effective", "prior")),
                    f"{row['log_alpha']:.2f}",
                    *(
                        f"{_two(row.get(f'kept_by_{by}'))} ({_two(row.get(f'log_alpha_by_{by}'))})"
                        for by in ("position", "token")
                    ),
                    _two(row.get("information")),
                ]
            )
    if not rows:
        return ""
    note = html.paragraph(
        "Kept: tokens with a pseudo-count above the threshold. Effective: the effective number of "
        "components, by expected weights, over all. Prior: the weight of the prior's component. R2 "
        'of "kept" and, in brackets, of the log pseudo-count by position and by token; r: the '
        "correlation of the number of vectors kept with -log p of the text, at equal length."
    )
    header = ["run", "layer", "kept, %", "effective\n%", "prior, %", "mean log\npseudo-count",
              "R2 by\nposition", "R2 by\ntoken", "r with\ninformation"]  # fmt: skip
    return note + html.table(header, rows)


def noise(settings: Sequence[Setting]) -> str:
    """chrF and nats of reconstructions against the share of wrong characters, by run."""
    found, _ = with_part(settings, "noise")
    if not found:
        return ""
    order = [setting.label for setting in settings]
    figures = []
    for name, label in (("chrf", "chrF, 0 to 100"), ("nats", "nats a character")):
        lines = []
        for i, _, part in found:
            shares = sorted({row["share"] for row in part})
            means = [np.mean([r[name] for r in part if r["share"] == share]) for share in shares]
            lines.append((order[i], [100 * share for share in shares], means))
        figure = plots.curves(
            lines, xlabel="wrong characters, %", ylabel=label, order=order, legend=False, log=False
        )
        figures.append((f"noise-{name}", f"Mean over four kinds of noise: {label}.", figure))
    note = html.paragraph(
        "Characters of the input are deleted, inserted, replaced or swapped; the clean text should "
        "come back. Compare levels: a model that is bad without noise loses little by it."
    )
    return note + html.key(order) + html.gallery(figures)


def segments(settings: Sequence[Setting]) -> str:
    """Segments of each run, drawn under the text."""
    found, _ = with_part(settings, "segments")
    if not found:
        return ""
    texts: dict[str, list[str]] = {}
    for i, run, part in found:
        for row in part:
            spans = [
                f'<span style="box-shadow:inset 0 -3px var(--c{n % 2})">'
                f"{escape(row['text'][a:b]).replace(' ', '&nbsp;')}</span>"
                for n, (a, b) in enumerate(row["segments"])
            ]
            card = html.card(html.label_html(run.label, i), ["".join(spans)])
            texts.setdefault(str(row["text"]), []).append(card)
    note = html.paragraph(
        "Characters that attend most to the same component of the last layer are underlined alike."
    )
    blocks = [f'<div class="cards">{"".join(cards)}</div>' for cards in texts.values()]
    rest = html.details(f"{len(blocks) - 4} more", "".join(blocks[4:])) * (len(blocks) > 4)
    return note + "".join(blocks[:4]) + rest


def probes(settings: Sequence[Setting]) -> str:
    """Accuracies of linear probes, by layer."""
    found, _ = with_part(settings, "probes")
    if not found:
        return ""
    most = max(len(row["layers"]) for _, _, part in found for row in part)
    rows = [
        [
            html.label_html(run.label, i),
            escape(f"{row['label']} ({row['classes']})"),
            f"{100 * row['majority']:.1f}",
            *(f"{100 * a:.1f}" for a in row["layers"]),
            *("–" for _ in range(most - len(row["layers"]))),
        ]
        for i, run, part in found
        for row in part
    ]
    header = ["run", "label\n(classes)", "commonest\n%", "embedding\n%"]
    header += [f"layer {n}\n%" for n in range(1, most)]
    note = html.paragraph(
        "Accuracy of softmax regression on sentences that it was not fitted on: labels of the "
        "sentence from the mean of a layer's states, the word from the state of one character."
    )
    return note + html.table(header, rows)


def _two(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.2f}"
