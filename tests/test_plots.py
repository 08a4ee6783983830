"""What is drawn is what was given, read back from the artists; nothing else changes."""

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from nvib_jax import plots
from nvib_jax.plots.style import COLOURS, MARKERS, look, marker

STEPS = np.array([10, 20, 30])


def axes_of(figure):
    return figure.axes[0]


def drawn(figure):
    """x, y, colour of every line with data."""
    lines = axes_of(figure).lines
    return [(*map(list, line.get_data()), to_hex(line.get_color())) for line in lines]


def texts(figure):
    return [text.get_text() for text in axes_of(figure).texts]


def legend(figure):
    found = axes_of(figure).get_legend()
    return None if found is None else [text.get_text() for text in found.get_texts()]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def all_figures():
    series = [("a", STEPS, [3, 2, 1]), ("b", STEPS, [1, 2, 3])]
    kinds, knobs = ["NVAE", "NVAE", "VTS"], ["0.1", "0.3", "0.5"]
    return [
        plots.curves(series, xlabel="step", ylabel="loss"),
        plots.vectors_by_length(series),
        plots.rate_distortion(kinds, knobs, [1, 2, 3], [3, 2, 1]),
        plots.forms_compared(["exact", "drawn"], [("a", [1, 2]), ("b", [3, 4])], xlabel="BLEU"),
        plots.kl_per_dimension([("a", [1, 2, 3])]),
        plots.token_weights(["a", "$b$", "c"], [0, 1, 2], [0.1, 0.2, 0.3]),
        plots.attention_map(np.eye(2, 3), ["x", "y"], ["prior", "x", "y"]),
        plots.mixture_field(
            np.eye(2), np.ones((2, 2)), [0.2, 0.8], np.zeros((2, 2, 2)), np.ones((2, 2, 2))
        ),
    ]


def test_every_figure_is_drawn_and_labelled():
    before = dict(matplotlib.rcParams)
    for figure in all_figures():
        file = io.StringIO()
        figure.savefig(file, format="svg")
        assert "<svg" in file.getvalue()
        axes = axes_of(figure)
        named = axes.get_xlabel() + axes.get_ylabel() + "".join(ticks(axes.xaxis))
        assert named.strip()
    assert dict(matplotlib.rcParams) == before


def test_a_notebook_shows_it_without_pyplot():
    for figure in all_figures():
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_titles_and_labels_are_inside_the_picture():
    """Square axes in a row once pushed both out."""
    field = plots.Field("a title", np.eye(2), 1.0, [0.5, 0.5], np.zeros((3, 2)), np.ones((3, 2)))
    for count in (1, 3):
        figure = plots.mixture_fields([field] * count)
        figure.draw_without_rendering()
        page = figure.bbox
        for axes in figure.axes:
            for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
                box = text.get_window_extent()
                assert page.contains(*box.min), text
                assert page.contains(*box.max), text


def test_fields_share_one_scale():
    wide = plots.Field("", 9 * np.eye(2), 0.0, [1, 0], 9 * np.ones((1, 2)), np.ones((1, 2)))
    narrow = wide._replace(mean=np.eye(2), query=np.ones((1, 2)))
    first, second = plots.mixture_fields([wide, narrow]).axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()


def test_no_pyplot():
    code = "import sys, nvib_jax.plots; print('matplotlib.pyplot' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "False"


def test_curves_share_colours_by_label_and_leave_out_what_is_not_finite():
    series = [("a", STEPS, [3, None, 1]), ("b", STEPS, [2, 2, np.inf]), ("a", STEPS, [4, 5, 6])]
    figure = plots.curves(series, xlabel="step", ylabel="nats", faint=[("c", STEPS, [7, 7, 7])])
    assert drawn(figure) == [
        ([10, 20, 30], [7, 7, 7], COLOURS[2]),
        ([10, 30], [3, 1], COLOURS[0]),
        ([10, 20], [2, 2], COLOURS[1]),
        ([10, 20, 30], [4, 5, 6], COLOURS[0]),
    ]
    axes = axes_of(figure)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "nats")
    assert legend(figure) == ["a", "b", "c"]
    lines = axes.get_legend().legend_handles
    assert [line.get_marker() for line in lines] == [*MARKERS[:2], "None"]  # as they are drawn


def test_order_fixes_colours_and_a_legend_can_be_left_out():
    figure = plots.curves(
        [("b", STEPS, STEPS)], xlabel="x", ylabel="y", order=["a", "b"], legend=False
    )
    assert drawn(figure)[0][2] == COLOURS[1]
    assert legend(figure) is None


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1, 5, 31], "log"), ([1, 5, 29], "linear"), ([0, 5, 31], "linear"), ([-1, 5, 31], "linear")],
)
def test_scale_is_logarithmic_where_values_span_much(values, scale):
    figure = plots.curves([("a", STEPS, values)], xlabel="x", ylabel="y")
    assert axes_of(figure).get_yscale() == scale


def test_markers_differ_once_colours_are_used_up():
    places = range(len(COLOURS) * len(MARKERS))
    looks = {(look(i)["color"], marker(i)) for i in places}
    assert len(looks) == len(places)


def test_vectors_by_length_has_the_reference_line():
    figure = plots.vectors_by_length([("_a", [2, 40], [2, 9]), ("b", [2, 30], [1, 1])])
    lines = drawn(figure)
    assert lines[0][:2] == ([2, 40], [2, 9])
    assert lines[2][:2] == ([0, 40], [0, 40])
    assert texts(figure) == ["one a token"]
    assert [name.strip() for name in legend(figure)] == ["_a", "b"]
    assert axes_of(figure).get_yscale() == "linear"


def test_rate_distortion_joins_a_kind_by_rate_with_its_bars():
    figure = plots.rate_distortion(
        ["NVAE", "VTS", "NVAE", "NVAE"],
        ["0.3", "0.5", "0.1", "lost"],
        [9, 5, 3, np.nan],
        [1, 4, 6, 2],
        rate_error=[0.5, np.nan, 0, 0],
        order=["T", "NVAE", "VTS", "NVAE"],
    )
    first, second = axes_of(figure).containers
    assert [list(a) for a in first.lines[0].get_data()] == [[3, 9], [6, 1]]
    assert to_hex(first.lines[0].get_color()) == COLOURS[1]
    assert [list(a) for a in second.lines[0].get_data()] == [[5], [4]]
    bars = first.lines[2][0].get_segments()
    assert [list(bar[:, 0]) for bar in bars] == [[3, 3], [8.5, 9.5]]
    assert sorted(texts(figure)) == ["0.1", "0.3", "0.5"]
    assert legend(figure) == ["NVAE", "VTS"]


def test_labels_of_near_points_do_not_overlap():
    x = np.array([5, 5.01, 5.02, 5.03, 9])
    labels = ["0.10", "0.20", "0.30", "0.40", "0.50"]
    figure = plots.rate_distortion(["NVAE"] * 5, labels, x, x)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes_of(figure).texts]
    pairs = [(i, j) for i in range(5) for j in range(i)]
    assert not [pair for pair in pairs if boxes[pair[0]].overlaps(boxes[pair[1]])]


def test_forms_are_rows_from_the_top():
    forms = ["exact", "drawn", "average"]
    figure = plots.forms_compared(forms, [("a", [1, None, 3]), ("b", [4, 5, 6])], xlabel="BLEU, %")
    (xa, ya, _), (xb, yb, _) = drawn(figure)[:2]
    assert (xa, xb) == ([1, 3], [4, 5, 6])
    assert np.round(ya).tolist() == [0, 2]
    assert not set(ya) & set(yb)
    axes = axes_of(figure)
    assert ticks(axes.yaxis) == forms
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert axes.get_xlabel() == "BLEU, %"


def test_dimensions_are_sorted():
    figure = plots.kl_per_dimension([("a", [0.5, 3.0, np.nan, 1.0])])
    assert drawn(figure)[0][:2] == ([1, 2, 3], [3.0, 1.0, 0.5])
    assert "nats" in axes_of(figure).get_ylabel()


def test_token_weights_show_words_and_numbers():
    words = ["$\\frac$", "_y", "\\z"]
    figure = plots.token_weights(words, [0.0, 2.5, 5.0], [0.125, 0.25, 0.5])
    axes = axes_of(figure)
    assert ticks(axes.xaxis) == words
    assert texts(figure) == ["0", "2.5", "5", "0.12", "0.25", "0.5"]
    assert np.asarray(axes.collections[0].get_array()).tolist() == [[0, 0.5, 1], [0.25, 0.5, 1]]
    figure.draw_without_rendering()  # dollars are no formula


def test_attention_map_has_a_row_for_each_query():
    shares = np.array([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    figure = plots.attention_map(shares, ["q0", "q1"], ["prior", "a", "b"])
    axes, bar = figure.axes
    assert np.allclose(axes.collections[0].get_array(), shares)
    assert ticks(axes.yaxis) == ["q0", "q1"]
    assert ticks(axes.xaxis) == ["prior", "a", "b"]
    assert bar.get_ylabel() == "share of attention"


def test_mixture_field_draws_arrows_ellipses_and_weights():
    mean, variance = np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[4.0, 1.0], [0.25, 0.0]])
    query, denoised = np.zeros((3, 3, 2)), np.ones((3, 3, 2)) * [2, 5]
    figure = plots.mixture_field(mean, variance, [0.25, 0.75], query, denoised)
    axes = axes_of(figure)
    arrows, dots = axes.collections
    assert (set(arrows.U), set(arrows.V), len(arrows.U)) == ({2.0}, {5.0}, 9)
    assert [(e.width, e.height) for e in axes.patches] == [(4.0, 2.0), (1.0, 0.0)]
    assert dots.get_offsets().tolist() == mean.tolist()
    small, large = dots.get_sizes()
    assert large - 8 == pytest.approx(3 * (small - 8))
    assert axes.get_aspect() == 1


def test_an_axis_in_per_cent_shows_all_of_it():
    """Between 49 and 50 a line that stood still looked as if it rose."""
    figure = plots.curves(
        [("a", [49.1, 49.8], [50.0, 49.5])], xlabel="vectors kept, %", ylabel="sentences exact, %"
    )
    axes = axes_of(figure)
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 100), (0, 100))
    beyond = plots.curves([("a", [1, 2], [50, 130])], xlabel="x", ylabel="kept, %")
    assert axes_of(beyond).get_ylim() == (0, 130)
    nats = plots.curves([("a", [1, 2], [50, 51])], xlabel="x", ylabel="nats")
    assert axes_of(nats).get_ylim()[0] > 40


def test_curves_mark_a_step_and_shade_a_ramp():
    figure = plots.curves(
        [("a", STEPS, [1, 2, 3]), ("b", STEPS, [1, 2, 3])],
        xlabel="x",
        ylabel="y",
        shaded=(0, 15),
        marks=[("b", 20)],
    )
    axes = axes_of(figure)
    (ground,) = axes.patches
    assert (ground.get_x(), ground.get_x() + ground.get_width()) == (0, 15)
    mark = axes.lines[0]
    assert list(mark.get_xdata()) == [20, 20]
    assert to_hex(mark.get_color()) == COLOURS[1]


@pytest.mark.parametrize(("log", "scale"), [(True, "log"), (False, "linear")])
def test_scale_may_be_asked_for(log, scale):
    figure = plots.curves([("a", STEPS, [1, 40, 50])], xlabel="x", ylabel="y", log=log)
    assert axes_of(figure).get_yscale() == scale


def test_rate_distortion_has_no_axis_below_zero():
    """100 - BLEU of 0.5 once had an axis from -10."""
    figure = plots.rate_distortion(["a"] * 3, ["x", "y", "z"], [20, 50, 99], [70, 30, 0.5])
    axes = axes_of(figure)
    assert axes.get_ylim()[0] == 0
    assert axes.get_xlim()[0] >= 0
    below = plots.rate_distortion(["a"] * 2, ["x", "y"], [-1, 5], [1, 2])
    assert axes_of(below).get_xlim()[0] < -1


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([35.0, 87.0, 100.0], [68.0, 2.3, 0.3]),  # of notebook 2: the last two looked swapped
        ([40.0, 44.0, 47.0], [0.5, 6.0, 12.0]),
        ([40.0, 44.0, 47.0], [5.0, 4.0, 4.5]),
    ],
)
def test_each_label_is_clearly_that_of_its_point(x, y):
    """The nearest by far, or a line leads to it."""
    names = [f"alpha_delta {delta:g}" for delta in (0.1, 0.5, 2)]
    figure = plots.rate_distortion(["a"] * 3, names, x, y)
    figure.draw_without_rendering()
    axes = axes_of(figure)
    assert texts(figure) == names
    points = axes.transData.transform(np.stack([x, y], -1))
    for i, text in enumerate(axes.texts):
        box = Text.get_window_extent(text)
        assert axes.bbox.contains(*box.min)
        assert axes.bbox.contains(*box.max)
        own, *others = np.roll(
            [np.linalg.norm(p - np.clip(p, box.min, box.max)) for p in points], -i
        )
        assert text.arrow_patch is not None or min(others) > 1.5 * own, text.get_text()


def test_every_figure_shows_all_of_a_percentage():
    forms = plots.forms_compared(["a", "b"], [("r", [49, 50])], xlabel="sentences exact, %")
    assert axes_of(forms).get_xlim() == (0, 100)
    plane = plots.rate_distortion(["a"] * 2, ["", ""], [49, 50], [1, 2], rate_label="kept, %")
    assert axes_of(plane).get_xlim() == (0, 100)
    score = plots.curves([("a", [1, 2], [98, 99])], xlabel="x", ylabel="BLEU, 0 to 100")
    assert axes_of(score).get_ylim() == (0, 100)
    shares = plots.curves([("a", [1, 2], [0.1, 90])], xlabel="x", ylabel="share, %")
    assert axes_of(shares).get_ylim() == (0, 100)
    assert axes_of(shares).get_yscale() == "linear"


def test_words_that_are_lost_are_pale():
    """A word that others push aside is found again; one that is there once counts once."""
    written = ["the dog that runs sees a cat", "a cat", "the the dog"]
    figure = plots.words_lost("the dog sees a cat", ["one", "two", "three"], written)
    (mesh,) = axes_of(figure).collections
    shown = np.asarray(mesh.get_array()).reshape(3, 5)
    np.testing.assert_array_equal(shown, [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0]])
    assert ticks(axes_of(figure).yaxis) == ["one", "two", "three"]
    assert ticks(axes_of(figure).xaxis) == ["the", "dog", "sees", "a", "cat"]
