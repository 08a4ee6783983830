"""The page holds what the runs hold, needs nothing else, and says what it lacks."""

import copy
import html.parser
import json
import re
from pathlib import Path

import pytest

from nvib_jax.evaluation.report import write_report
from nvib_jax.evaluation.report.html import _CSS, difference, heat_table
from nvib_jax.evaluation.report.runs import group, read_run
from nvib_jax.evaluation.report.scores import explained, grouped
from nvib_jax.plots.style import COLOURS, INK
from nvib_jax.training.logging import MetricWriter

PARTS = {  # part of an evaluation -> the heading of its section
    "forms": "Ways to read a posterior",
    "thresholds": "Dropping small pseudo-counts",
    "budgets": "A budget at reading",
    "by_length": "Vectors against length",
    "choice": "Which vectors are kept",
    "dimensions": "KL per latent dimension",
    "reconstructions": "Reconstructions",
    "samples": "Samples from the prior",
    "interpolations": "Interpolations",
    "tokens": "What each token's vector weighs",
}
NASTY = '<script>alert("1")</script> & co'
SCORES = {
    "kept_hard": 0.5, "kept_soft": 0.4, "bleu": 98.0, "exact": 0.9, "elbo_token": -9.5,
    "elbo_sentence": -95.0, "iwae_sentence": -90.0, "reconstruction_token": -0.5,
    "in_language": 0.5, "sample_forward_perplexity": 12.0, "log_prob": None,
}  # fmt: skip


def evaluation(name="a", kind="NVAE", seed=0, model=None, **scores):
    return {
        "name": name,
        "kind": kind,
        "split": "test",
        "sentences": 512,
        "seed": 0,
        "config": {
            "model": {"kind": kind, "alpha_delta": 0.3, "stride_share": 0.5, **(model or {})},
            "train": {"seed": seed, "run_dir": f"runs/{name}{seed}"},
        },
        "scores": {**SCORES, **scores},
        "forms": [
            {"form": "exact", "bleu": 90.0, "exact": 0.8, "nats_per_token": 0.5},
            {"form": "expected_logit", "bleu": 95.0, "exact": None, "nats_per_token": 0.4},
        ],
        "budgets": [
            {"budget": 0.25, "kept": 0.3, "exact": 0.1, "bleu": 31.0},
            {"budget": 1.0, "kept": 0.5, "exact": 0.9, "bleu": 98.0},
        ],
        "thresholds": [
            {"threshold": t, "kept": k, "bleu": 90.0, "exact": 0.8}
            for t, k in ((0.0, 0.625), (0.1, 0.5))
        ],
        "by_length": [
            {"length": n, "sentences": 9, "vectors": n / 2, "effective": n / 3} for n in (3, 8)
        ],
        "choice": {
            "explained": {
                "position": {"kept": 0.98, "log_pseudo_count": None, "chance": 0.01, "groups": 9},
                "class": {"kept": 0.2, "log_pseudo_count": 0.3, "chance": 0.01, "groups": 2},
            },
            "information": None,
            "by_position": [{"position": i, "tokens": 9, "kept": i / 9} for i in range(1, 4)],
            "by_class": [{"class": c, "tokens": 9, "kept": 0.5} for c in ("THE", "PERSON")],
        },
        "dimensions": {"active": 3, "passive": 5, "kl": [0.1, 2.0, 0.3]},
        "reconstructions": [
            {"text": "the dog sees a cat", "output": f"the dog sees {name} cat"},
            {"text": NASTY, "output": NASTY},
        ],
        "samples": ["birds slept", NASTY],
        "interpolations": [{"a": "a b", "b": "a c", "path": ["a b", "a <d>", "a c"]}],
        "tokens": [{"tokens": ["a", NASTY], "pseudo_counts": [0, 2.5], "attention": [0.001, 0.75]}],
    }


def write_run(folder, found=None, *, metrics=True):
    if metrics:
        writer = MetricWriter(folder)
        for step in (5, 10, 15):
            writer.write(step, "train", {"loss": 9.0 / step, "share_kept": 0.5, "other": 1.0})
            writer.write(step, "validation", {"loss": 10.0 / step, "kl_dirichlet": 0.0})
        writer.close()
    folder.mkdir(exist_ok=True)
    if found is not None:
        (folder / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


class Page(html.parser.HTMLParser):
    """Elements, attributes and text; fails on tags that do not match."""

    VOID = ("meta", "br", "link", "img", "input", "hr", "col")

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.elements, self.words, self.cells = [], [], [], []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def headings(self):
        return re.findall(r"<h2>(.*?)</h2>", self.source)

    def values(self, *names):
        return [
            value for _, attrs in self.elements for name, value in attrs.items() if name in names
        ]


def report(folder, *runs):
    return Page(write_report(runs, folder / "pages" / "report.html"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two seeds of one setting, a rival, and a run that was not evaluated."""
    folder = tmp_path_factory.mktemp("report")
    runs = [
        write_run(folder / "a0", evaluation(bleu=97.0)),
        write_run(folder / "a1", evaluation(seed=1, bleu=99.0, elbo_token=-9.7), metrics=False),
        write_run(folder / "b", evaluation("b & <i>", "VTS", bleu=92.0, elbo_token=-8.0)),
        write_run(folder / "curves"),
    ]
    return report(folder, *runs)


def test_page_is_whole_and_needs_no_other_file(page):
    tags = [tag for tag, _ in page.elements]
    assert {tags.count(tag) for tag in ("html", "head", "style", "title", "h1", "main")} == {1}
    assert not {"script", "link", "img", "iframe", "image", "metadata"} & set(tags)
    assert ("meta", "viewport") in [(tag, attrs.get("name")) for tag, attrs in page.elements]
    ids = page.values("id")
    assert len(set(ids)) == len(ids) > 100
    links = page.values("href", "xlink:href") + re.findall(r"url\((.*?)\)", page.source)
    assert links
    assert {link[1:] for link in links if link[0] == "#"} <= set(ids)
    assert [link for link in links if link[0] != "#"] == []
    assert page.values("src") == []
    assert "http" not in page.source
    assert "@import" not in page.source


def test_figures_take_the_colours_of_the_page_and_say_what_they_are(page):
    body = page.source.split("</style>")[1].lower()
    assert [colour for colour in (*COLOURS, INK) if colour in body] == []
    assert all(f"var(--{name})" in body for name in ("ink", "muted", "grid", "c0", "c1", "c2"))
    style = page.source.split("</style>")[0]
    assert style.count("--c0:") == 2  # in light and in dark
    assert "prefers-color-scheme:dark" in style
    figures = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert len(figures) == 17
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in figures)
    assert "vectors, by pseudo-count" in page.text  # axis labels are text


def test_what_comes_in_is_escaped(page):
    assert page.text.count(NASTY) >= 4
    assert "<script" not in page.source
    assert "<i>" not in page.source
    assert "b & <i>" in page.text
    assert "a <d>" in page.text


def test_seeds_are_one_row_and_the_best_is_marked(page):
    assert "4 runs of 3 settings." in page.text
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", page.source)[:3]
    cells = [[re.sub("<.*?>", "", c) for c in re.findall(r"<td.*?>(.*?)</td>", r)] for r in rows]
    seeds, rival, curves = cells
    assert "seed 0, 1" in rows[0]
    assert seeds[0] == "NVAEalpha_delta 0.3"
    assert rival[0] == "VTSstride_share 0.5"
    # kept hard and soft, BLEU, exact, ELBO, IWAE, in language, perplexity
    assert seeds[1:6] == ["50.0 ± 0.0", "40.0 ± 0.0", "98.0 ± 1.4", "90.0 ± 0.0", "−9.60 ± 0.14"]
    assert rival[1:] == ["50.0", "40.0", "92.0", "90.0", "−8.00", "−7.58", "50.0", "12.0"]
    assert set(curves[1:]) == {"–"}
    best = [re.findall(r'class="best">(.*?)<', row) for row in rows]
    assert "98.0 ± 1.4" in best[0]
    assert "−8.00" in best[1]
    assert "92.0" not in best[1]
    assert "50.0" not in best[1][:1]  # fewer vectors are not better by themselves


def test_sections_show_the_runs_side_by_side(page):
    assert page.headings() == [
        "Runs side by side", "Training curves", "Rate and distortion", "Reconstructions",
        "What each token&#x27;s vector weighs", "Which vectors are kept", "Vectors against length",
        "Ways to read a posterior", "Dropping small pseudo-counts", "A budget at reading",
        "KL per latent dimension",
        "Interpolations", "Samples from the prior",
    ]  # fmt: skip
    assert "Without evaluation.json, so curves only: curves." in page.text
    assert "the dog sees <del>a</del> <ins>b &amp; &lt;i&gt;</ins> cat" in page.source
    assert "62.5" in page.cells  # share kept at a threshold, folded
    assert "&lt;.01</span>" in page.source
    assert "Not in the metrics.jsonl of a, seed 1." in page.text
    assert "Not in the evaluation.json of curves." in page.text
    assert "all runs" in page.text
    assert "a <ins>&lt;d&gt;</ins>" in page.source


@pytest.mark.parametrize("gone", [None, [], {}])
def test_missing_parts_are_left_out_and_named(tmp_path, gone):
    found = evaluation()
    found |= dict.fromkeys([*PARTS, "scores"], gone)
    page = report(tmp_path, write_run(tmp_path / "run", found, metrics=False))
    assert page.headings() == ["Runs side by side"]
    left_out = page.text.split("Left out for want of data: ")[1].split(".")[0]
    assert set(left_out.split(", ")) == {*PARTS.values(), "Training curves", "Rate and distortion"}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone_is_enough(tmp_path, part):
    found = {"name": "old", part: evaluation()[part]}
    page = report(tmp_path, write_run(tmp_path / "run", found, metrics=False))
    assert [html.unescape(h) for h in page.headings()] == ["Runs side by side", PARTS[part]]


def test_curves_are_drawn_without_an_evaluation_and_a_cut_off_line_is_no_harm(tmp_path):
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "sp')
    (run / "config.json").write_text(json.dumps(evaluation()["config"]))
    page = report(tmp_path, run)
    assert page.headings() == ["Runs side by side", "Training curves"]
    assert {"curve-loss", "curve-share_kept"} <= set(page.values("id"))
    assert "curve-kl_dirichlet" not in page.values("id")  # zeros only: there is no Dirichlet
    assert "NVAE" in page.text
    assert "alpha_delta 0.3" in page.text


def test_what_is_no_run_is_one_clear_sentence(tmp_path):
    out = tmp_path / "report.html"
    with pytest.raises(FileNotFoundError, match=r"nowhere is no run: neither metrics\.jsonl nor"):
        write_report([tmp_path / "nowhere"], out)
    with pytest.raises(ValueError, match="no runs to report on"):
        write_report([], out)
    run = write_run(tmp_path / "run", metrics=False)
    (run / "evaluation.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"evaluation\.json holds list; wanted a JSON object"):
        write_report([run], out)
    (run / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"evaluation\.json is no JSON"):
        write_report([run], out)
    assert not out.exists()


def settings_of(tmp_path, *found):
    folders = [write_run(tmp_path / f"r{i}", f, metrics=False) for i, f in enumerate(found)]
    return group([read_run(folder) for folder in folders])


def test_only_seed_and_folder_may_differ_within_a_setting(tmp_path):
    other = copy.deepcopy(evaluation(seed=2))
    other["split"] = "validation"
    settings = settings_of(
        tmp_path,
        evaluation("x-0.3-seed0"),
        evaluation("x-0.3", model={"alpha_delta": 0.1}),
        evaluation("x-0.3-seed1", seed=1),
        other,
    )
    assert [[run.folder.name for run in s.runs] for s in settings] == [["r0", "r2"], ["r1"], ["r3"]]
    assert [s.label for s in settings] == ["x-0.3 alpha_delta 0.3", "x-0.3 alpha_delta 0.1", "a"]
    runs = [run.label for s in settings for run in s.runs]
    assert runs[:2] == ["x-0.3 alpha_delta 0.3, seed 0", "x-0.3 alpha_delta 0.3, seed 1"]
    assert len(set(runs)) == 4


def test_runs_that_look_alike_get_labels_of_their_own(tmp_path):
    settings = settings_of(tmp_path, {"name": "a"}, {"name": "a"}, evaluation(), evaluation())
    labels = [s.label for s in settings]
    assert len(set(labels)) == len(settings) == 3
    assert len({run.label for run in settings[2].runs}) == 2


def test_a_folder_given_twice_is_one_run(tmp_path):
    run = write_run(tmp_path / "run", {"name": "a"}, metrics=False)
    page = report(tmp_path, run, tmp_path / "run" / ".." / "run")
    assert "1 run of 1 setting." in page.text


@pytest.mark.parametrize(
    ("source", "output", "shown"),
    [
        ("a b c", "a b c", "a b c"),
        ("a b c", "a c", "a <del>b</del> c"),
        ("a c", "a b c", "a <ins>b</ins> c"),
        ("a <b> c", "a & d", "a <del>&lt;b&gt; c</del> <ins>&amp; d</ins>"),
        ("a", "", "<del>a</del>"),
    ],
)
def test_differences_are_by_word(source, output, shown):
    assert difference(source, output) == shown
    without = re.sub(r" ?<del>.*?</del> ?", " ", shown).strip()
    assert difference(source, output, lost=False) == without


def test_shades_rise_with_the_number_each_row_on_its_own_scale():
    rows = [("r", [1.0, 2.0, None]), ("s", [0.0, 0.01, 0.05])]
    table = heat_table(["a", "b", "c"], [("x", rows)])
    shades = re.findall(r"rgba\(0,114,178,([\d.]+)\)\">(.*?)<", table)  # word by word
    assert [shade for shade, _ in shades] == ["0.33", "0.00", "0.65", "0.07", "0.00", "0.33"]
    assert [number for _, number in shades] == ["1", "0", "2", "0.01", "–", "0.05"]


def test_scores_of_an_earlier_step_are_marked_where_the_curves_go_on(tmp_path):
    early, last, unknown = evaluation("early"), evaluation("last", "VTS"), evaluation("old", "VTV")
    early |= {"step": 10, "checkpoint": "best"}
    last |= {"step": 15}
    page = report(
        tmp_path,
        *(write_run(tmp_path / e["name"], e) for e in (early, last, unknown)),
    )
    assert (
        "The scores of early are of step 10 (its best checkpoint when it was evaluated), while its "
        "curves go on to step 15."
    ) in page.text
    assert "The scores of last" not in page.text
    assert "does not say of which step" in page.text.split("The scores of old")[1]
    assert "Dashed: the step whose parameters" in page.text
    loss = page.source.split('<figure id="curve-loss">')[1].split("</figure>")[0]
    assert loss.count("stroke-dasharray: 3.7,1.6") == 1  # early's


def test_a_run_that_was_not_evaluated_shows_the_figures_of_its_end(tmp_path):
    """They were in scores.json, and the page had dashes."""
    run = write_run(tmp_path / "run")
    figures = {"exact": 0.885, "bleu": 94.7, "log_prob": None}
    (run / "scores.json").write_text(json.dumps({"trained": figures, "untrained": {"exact": 0}}))
    other = write_run(tmp_path / "other", evaluation("other", exact=0.8))
    page = report(tmp_path, run, other)
    assert "88.5†" in page.cells
    assert "94.7†" in page.cells
    assert "† of scores.json: measured when training ended, on validation sentences" in page.text
    assert "so the figures of its training's end alone: run." in page.text
    assert not re.findall(r'class="best">[^<]*†', page.source)  # other sentences: no contest


def test_an_evaluation_comes_before_the_figures_of_the_end(tmp_path):
    run = write_run(tmp_path / "run", evaluation(in_language=None))
    figures = {"exact": 0.1, "in_language": 0.2}
    (run / "scores.json").write_text(json.dumps({"trained": figures}))
    page = report(tmp_path, run)
    assert "90.0" in page.cells
    assert "†" not in page.text  # what was measured and does not exist is not made up for


def test_the_ramp_is_shaded_and_said(tmp_path):
    found = evaluation()
    found["config"]["objective"] = {"anneal": "linear", "anneal_start": 2, "anneal_steps": 10}
    page = report(tmp_path, write_run(tmp_path / "run", found))
    assert "Up to step 12 (grey) training's weights of the KLs are still rising" in page.text
    constant = evaluation()
    constant["config"]["objective"] = {"anneal": "constant", "anneal_steps": 10}
    page = report(tmp_path, write_run(tmp_path / "other", constant))
    assert "grey" not in page.text


@pytest.mark.parametrize(
    ("objective", "ramp"),
    [
        ({"anneal": "cosine", "anneal_start": 5, "anneal_steps": 7}, 12),
        ({"anneal": "cyclic", "anneal_steps": 3}, 15),
        ({"anneal": "linear", "anneal_steps": 3, "capacity_steps": 9}, 9),
        ({"alpha_delta_start": 0.0, "alpha_delta_steps": 8}, 8),
        ({"alpha_delta_start": None, "alpha_delta_steps": 8}, 0),
        ({}, 0),
    ],
)
def test_training_is_at_its_final_weights_from(tmp_path, objective, ramp):
    found = evaluation()
    found["config"]["objective"] = objective
    assert read_run(write_run(tmp_path / "run", found)).ramp == ramp


def test_shares_are_drawn_on_all_of_0_to_100(page):
    """Between 49 and 50 a line that stood still looked as if it rose."""
    shown = page.source.split('<figure id="curve-share_kept">')[1].split("</figure>")[0]
    ticks = re.findall(r">(\d+)</text>", shown)
    assert {"0", "20", "40", "60", "80", "100"} <= set(ticks)


def test_shares_by_length_come_with_the_number_of_sentences(tmp_path):
    found = evaluation()
    for row in found["by_length"]:
        row["exact"] = 0.5
    page = report(tmp_path, write_run(tmp_path / "run", found, metrics=False))
    assert {"length-exact", "length-sentences"} <= set(page.values("id"))
    assert page.cells.count("sentences") == 1
    assert "9" in page.cells


def test_every_score_is_explained(tmp_path):
    """All names that `nvib evaluate` has written, in the results that are kept."""
    results = Path(__file__).parents[2] / "configs" / "sweeps" / "results"
    runs = [run for path in results.glob("*.json") for run in json.loads(path.read_text())]
    names = list(dict.fromkeys(name for run in runs for name in run["scores"]))
    assert len(names) > 60
    groups = grouped(names)
    assert "Others" not in dict(groups)
    shown = [name for _, group in groups for name in group]
    assert len(set(shown)) == len(shown)
    left_out = {n for n in names if n not in shown and not n.endswith("_error")}
    assert left_out == {"iwae_sentence", "iwae_token"}  # as iwae_100_sentence, iwae_100_token
    assert all(explained(name) for name in shown)
    assert grouped(["new_score", "exact"])[-1] == ("Others", ["new_score"])
    assert grouped(["word_error_rate", "x_error"]) == [
        ("What comes back, read without noise", ["word_error_rate"]),
        ("Others", ["x_error"]),
    ]


def test_scores_are_shown_with_words_and_errors(tmp_path):
    found = evaluation(elbo_token_error=0.125, new_score=3.0)
    page = report(tmp_path, write_run(tmp_path / "run", found, metrics=False))
    assert "ELBO, nats a tokenelbo_token" in page.cells
    assert "−9.5 ± 0.12" in page.cells
    assert "elbo_token_error" not in page.text
    assert "sentences that are the same, letter by letter, %exact" in page.cells
    assert "new_score" in page.cells


def test_words_of_a_long_sentence_wrap():
    """A table of fifty columns was cut off at the page's edge."""
    table = heat_table(["w"] * 50, [("x", [("r", [1.0] * 50)])])
    assert "<table" not in table
    assert table.count('<div class="token">') == 50
    assert ".tokens{display:flex;flex-wrap:wrap" in _CSS


def test_one_run_has_no_plane_and_the_page_says_why(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run", evaluation()))
    assert "Rate and distortion are shown for two settings or more." in page.text
    assert "for want of data" not in page.text


def test_what_the_choice_depends_on_is_a_table(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run", evaluation()))
    assert "0.98 (-)" in page.cells
    assert "0.20 (0.30)" in page.cells
    assert "a stride, whatever its scores" in page.text
