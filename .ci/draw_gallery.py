"""Draw `colab/gallery.png`, the README's picture of what a run has learned.

    python .ci/draw_gallery.py runs/quickstart

The texts are not chosen: the first test sentences, the first pair to interpolate between and the
first samples of seed 0. A model must have a gate, which says of each word whether its vector is
kept.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import nvib_jax as nvib
from nvib_jax.data import prepare
from nvib_jax.evaluation import token_usage
from nvib_jax.evaluation.choice import choice
from nvib_jax.plots import style

OUT = Path(__file__).resolve().parent.parent / "colab" / "gallery.png"
SENTENCES, SAMPLES, STEPS, COUNTED = 3, 5, 5, 512
LINE, LETTER = 0.165, 0.0585  # inches, of 7 points
FEW, CLASSES = 30, 14  # tokens at a place, below which a share says little; classes shown


def show_texts(axes: Axes, title: str, lines: list[list[tuple[str, bool]]]) -> None:
    """Lines of words; those marked True are in colour and underlined, so that colour is not all."""
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=9, color=style.INK)
    assert isinstance(axes.figure, Figure)
    width, height = axes.figure.get_size_inches()
    box = axes.get_position()
    across, down = LETTER / (width * box.width), LINE / (height * box.height)
    for row, words in enumerate(lines):
        x, y = 0.0, 1 - (row + 0.7) * down
        for word, marked in words:
            look = {"color": style.COLOURS[0], "weight": "bold"} if marked else {}
            axes.text(
                x, y, word, transform=axes.transAxes, family="monospace", fontsize=7,
                **({"color": style.MUTED} | look),
            )  # fmt: skip
            if marked:
                ends = [x, x + len(word) * across]
                axes.plot(
                    ends, [y - 0.2 * down] * 2, transform=axes.transAxes,
                    color=style.COLOURS[0], linewidth=0.9, clip_on=False,
                )  # fmt: skip
            x += (len(word) + 1) * across


@style.styled
def draw(run: str) -> Figure:
    """Where vectors are kept, in which words, what lies half way, and what is written anew."""
    model = nvib.load(run)
    texts = prepare(model.config.data).sentences("test", COUNTED)
    found = choice(model, texts, grammar=True)
    figure = Figure(figsize=(9.4, 4.3))
    share = figure.add_axes((0.06, 0.63, 0.4, 0.3))
    rows = [row for row in found["by_position"] if row["tokens"] >= FEW]
    share.plot([r["position"] for r in rows], [100 * r["kept"] for r in rows], marker="o", ms=3)
    share.set_xticks(range(1, len(rows) + 1, 2))
    share.set(ylim=(0, 100), xlabel="place in the sentence", ylabel="vectors kept, %")
    share.set_title("no place is kept or dropped as such ...", loc="left", fontsize=9)

    frequent = sorted(found["by_class"], key=lambda row: -row["tokens"])[:CLASSES]
    most = sorted(frequent, key=lambda row: -row["kept"])
    bars = figure.add_axes((0.6, 0.63, 0.385, 0.3))
    bars.barh(range(len(most)), [100 * row["kept"] for row in most], color=style.COLOURS[0])
    bars.set_yticks(range(len(most)), [row["class"].lower() for row in most], fontsize=6.5)
    bars.invert_yaxis()
    bars.grid(visible=False, axis="y")
    bars.set(xlim=(0, 100), xlabel="vectors kept, %, of the most frequent classes of words")
    bars.set_title("... what is said decides", loc="left", fontsize=9)

    kept = []
    for usage in token_usage(model, texts[:SENTENCES]):
        present = np.asarray(usage["pseudo_counts"]) > 0
        kept.append(list(zip(usage["tokens"], present.tolist(), strict=True)))
    whole = figure.add_axes((0.02, 0.33, 0.96, 0.13))
    show_texts(whole, "test sentences, and the words whose vectors are kept", kept)
    path = model.interpolate(*texts[:2], steps=STEPS)
    between = figure.add_axes((0.02, 0.0, 0.58, 0.23))
    show_texts(between, "from one sentence to another", [[(line, False)] for line in path])
    drawn = figure.add_axes((0.62, 0.0, 0.36, 0.23))
    new = [[(line, False)] for line in model.sample(SAMPLES)]
    show_texts(drawn, "samples of the prior", new)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder of a trained run")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    file = io.BytesIO()
    draw(options.run).savefig(file, format="png", dpi=160, facecolor="white")
    picture = Image.open(file).convert("RGB").quantize(64)
    picture.save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")
