"""The look of `nvib_jax.plots`, and the parts that its figures share.

Colours are Okabe & Ito's (2008), which the colour-blind can tell apart.
"""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

INK, MUTED, GRID = "#1b1f23", "#6a6f75", "#d4d7da"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
MARKERS = ("o", "s", "^", "D", "v", "p", "X")

P = ParamSpec("P")
T = TypeVar("T")

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # because tokens and names may contain dollar signs
    "text.color": INK,
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function with this file's matplotlib settings, without changing the caller's."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
            return function(*args, **kwargs)

    return inside


def colour(index: int) -> str:
    """The colour of the label at this place, as `#rrggbb`."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The marker of the label at this place; labels with the same colour have different ones."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


class Picture(Figure):
    """A figure that notebooks can show; matplotlib's own is shown only if pyplot made it."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110, bbox_inches="tight")
        return file.getvalue()


def new_axes(
    xlabel: str, ylabel: str, *, width: float = 4.4, height: float = 3.0
) -> tuple[Figure, Axes]:
    """An empty figure; sizes are in inches, and a phone's screen is about 4 wide."""
    figure = _figure(width, height)
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def new_row(count: int, xlabel: str, ylabel: str) -> tuple[Figure, Sequence[Axes]]:
    """Square axes side by side that share their limits."""
    figure = _figure(0.8 + 2.8 * count, 3.6)
    row = figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
    for axes in row:
        axes.set_xlabel(xlabel)
    row[0].set_ylabel(ylabel)
    return figure, row


def _figure(width: float, height: float) -> Figure:
    figure = Picture(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def floats(values: ArrayLike) -> np.ndarray:
    """The values as floats; None becomes NaN."""
    return np.asarray(values, dtype=float)


def finite(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (x, y) of which both numbers are finite."""
    x, y = floats(x), floats(y)
    here = np.isfinite(x) & np.isfinite(y)
    return x[here], y[here]


def label_order(series: Sequence[tuple], order: Sequence[str] | None) -> list[str]:
    """The labels, each once; a label's place decides its colour."""
    return list(dict.fromkeys([*(order or ()), *(label for label, *_ in series)]))


def look(index: int) -> dict[str, Any]:
    """Line and marker of the label at this place."""
    return {"color": colour(index), "marker": marker(index), "markersize": 4.5, "linewidth": 1.3}


def thin(index: int) -> dict[str, Any]:
    """A line behind the others, without markers."""
    return {"color": colour(index), "linewidth": 0.8, "alpha": 0.5}


def add_legend(
    axes: Axes, places: Mapping[str, int], wanted: bool, *, faint: Sequence[str] = ()
) -> None:
    """A legend with one entry for each label (label -> its place), if there are several; those in
    `faint` have a thin line.
    """
    if wanted and len(places) > 1:
        lines = [Line2D([], [], **(thin if n in faint else look)(i)) for n, i in places.items()]
        # A space is added, because matplotlib leaves out labels that start with an underscore.
        axes.legend(lines, [f" {name}" if name.startswith("_") else name for name in places])


def heat_map(
    axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> QuadMesh:
    """Cells centred on whole numbers, the first row on top."""
    places = np.arange(len(columns)), np.arange(len(rows))
    mesh = axes.pcolormesh(*places, values, cmap="Blues", vmin=0, vmax=1, shading="nearest")
    axes.set_xticks(places[0], labels=list(columns), rotation=45, ha="right")
    axes.set_yticks(places[1], labels=list(rows))
    axes.tick_params(length=0)
    axes.grid(False)
    axes.invert_yaxis()
    return mesh


PERCENTS = ("%", "0 to 100")  # what the label of an axis that shows all of 0 to 100 ends with


def whole_percents(axes: Axes) -> None:
    """Show all of 0 to 100 on axes of `PERCENTS`, without cutting off markers at the ends."""
    for axis, limits in ((axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)):
        if axis.get_label_text().endswith(PERCENTS):
            limits(0, max(100, axis.get_data_interval()[1]))  # a share may be above 100 %
            for line in axes.lines:
                line.set_clip_on(False)


def start_at_zero(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Let an axis begin at 0 if the margin would reach below 0 although no point is there."""
    if len(x):
        axes.set_xlim(left=max(axes.get_xlim()[0], 0.0) if x.min() >= 0 else None)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0) if y.min() >= 0 else None)


def label_points(axes: Axes, x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> None:
    """Place each label beside its point, such that it covers no point or other label.

    A label that would be about as near to another point as to its own is placed farther away, with
    a thin line from it to its point.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the layout, which is measured below
    points = axes.transData.transform(np.stack([x, y], -1))
    taken = [Bbox.from_bounds(a - 4, b - 4, 8, 8) for a, b in points]
    if (legend := axes.get_legend()) is not None:
        taken.append(legend.get_window_extent())
    around = [(dx, dy) for d in (6, 18, 30, 42) for dy in (d, -d) for dx in (d, -d, d / 3, -d / 3)]
    for i, label in enumerate(labels):
        fewest, chosen = 3, None
        for place in around:
            text = _label(axes, label, (x[i], y[i]), place)
            box = _box(text)
            outside = not (axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max))
            others = [_distance(box, point) for j, point in enumerate(points) if j != i]
            near = min(others, default=np.inf) < 1.5 * _distance(box, points[i])
            covers = any(map(box.overlaps, taken))
            faults = 2 * (outside or covers) + (near and text.arrow_patch is None)
            if faults < fewest:
                chosen, text, fewest = text, chosen, faults
            if text is not None:
                text.remove()
            if fewest == 0:
                break
        assert chosen is not None
        taken.append(_box(chosen))


def _label(
    axes: Axes, label: str, point: tuple[float, float], place: tuple[float, float]
) -> Annotation:
    """Text this many points away from its point, with a line between them unless they are close."""
    dx, dy = place
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    return axes.annotate(
        label,
        point,
        place,
        textcoords="offset points",
        size=8,
        ha="left" if dx > 0 else "right",
        va="bottom" if dy > 0 else "top",
        arrowprops=line if abs(dy) > 6 else None,
    )


def _box(text: Annotation) -> Bbox:
    """The bounding box of the words. An annotation's own box includes its line; the first call
    below is needed because it settles the layout.
    """
    text.get_window_extent()
    return Text.get_window_extent(text)


def _distance(box: Bbox, point: np.ndarray) -> float:
    """From a point to the nearest of a box."""
    return float(np.linalg.norm(point - np.clip(point, box.min, box.max)))
