"""Paths between texts: written in batches as one at a time, and every score worked by hand."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import sacrebleu
import tiny

from nvib_jax.data import prepare
from nvib_jax.evaluation import interpolation
from nvib_jax.evaluation.interpolation import (
    interpolate_pairs,
    interpolation_scores,
    mirrored_pairs,
)
from nvib_jax.generate import DecodingConfig
from nvib_jax.models.latents import DirichletLatent
from nvib_jax.text_model import TextModel

SAMPLE = DecodingConfig(method="sample")


# ---- pairs


def test_mirrored_pairs():
    assert mirrored_pairs(["a", "b"]) == [("a", "b")]
    assert mirrored_pairs(["a", "b", "c"]) == [("a", "c")]
    assert mirrored_pairs(("a", "b", "c", "d", "e", "f")) == [("a", "f"), ("b", "e"), ("c", "d")]
    for texts in ([], ["a"]):
        with pytest.raises(ValueError, match=f"texts has {len(texts)}; wanted at least 2"):
            mirrored_pairs(texts)


# ---- paths of a model


@pytest.fixture(scope="module")
def model():
    """The trained model's structure and tokenizer with random matrices: after 20 steps every text
    gives "the", with these each gives its own. Three pairs a batch."""
    trained = TextModel.load(tiny.trained()[0].train.run_dir)
    keys = dict(zip(trained.params, jax.random.split(jax.random.key(0), 999), strict=False))
    params = {
        k: 0.5 * jax.random.normal(keys[k], v.shape) if v.ndim > 1 else v
        for k, v in trained.params.items()
    }
    patch = pytest.MonkeyPatch()
    patch.setattr(interpolation, "ROWS", 17)
    yield dataclasses.replace(trained, params=params, _compiled={})
    patch.undo()


@pytest.fixture(scope="module")
def pairs():
    """Seven: two full batches and one pair more."""
    return mirrored_pairs(list(prepare(tiny.config().data).sentences("validation", 15)))


def test_the_model_tells_texts_apart(model, pairs):
    """Else nothing below could fail."""
    ends = [text for pair in pairs for text in pair]
    assert len(set(model.reconstruct(ends, clean=False))) > 10


@pytest.mark.parametrize("form", [None, "exact"])
def test_paths_begin_and_end_at_the_reconstructions(model, pairs, form):
    paths = interpolate_pairs(model, pairs, form=form)
    assert [len(path) for path in paths] == [5] * 7
    assert [path[0] for path in paths] == model.reconstruct(
        [a for a, _ in pairs], form=form, clean=False
    )
    assert [path[-1] for path in paths] == model.reconstruct(
        [b for _, b in pairs], form=form, clean=False
    )


def test_batches_do_not_matter(model, pairs):
    paths = interpolate_pairs(model, pairs)
    assert paths == [interpolate_pairs(model, [pair])[0] for pair in pairs]
    assert paths[::-1] == interpolate_pairs(model, pairs[::-1])
    assert paths[:2] == [model.interpolate(a, b, clean=False) for a, b in pairs[:2]]


def test_steps(model, pairs, monkeypatch):
    """More points than a batch has rows are a batch of one pair."""
    monkeypatch.setattr(interpolation, "ROWS", 2)
    (path,) = interpolate_pairs(model, pairs[:1], steps=3)
    assert path == model.interpolate(*pairs[0], steps=3, clean=False)
    assert path == interpolate_pairs(model, pairs[:1])[0][::2]


def test_one_compilation(model, pairs):
    fresh = dataclasses.replace(model, _compiled={})
    for some in (pairs[:1], pairs[:3], pairs):
        interpolate_pairs(fresh, some)
    assert [run._cache_size() for run in fresh._compiled.values()] == [1]


def test_seeds_name_draws(model, pairs):
    paths, again, other = (
        interpolate_pairs(model, pairs[:1] * 6, form="drawn", seed=seed) for seed in (-1, -1, 0)
    )
    assert paths == again != other
    # Nor is the second batch a copy of the first, or one pair of a batch of the next.
    assert len({tuple(path) for path in paths}) == 6
    sampled = interpolate_pairs(model, pairs[:1] * 6, decoding=SAMPLE)
    assert len({tuple(path) for path in sampled}) == 6


def test_an_end_is_drawn_once(model, pairs, monkeypatch):
    """A path from one draw to another, not from five to five."""
    seen = []

    def spy(self, a, b, t):
        jax.debug.callback(lambda *arrays: seen.extend(arrays), a.mean, b.mean, t)
        return real(self, a, b, t)

    real = DirichletLatent.interpolate
    monkeypatch.setattr(DirichletLatent, "interpolate", spy)
    interpolate_pairs(dataclasses.replace(model, _compiled={}), pairs[:3], form="drawn")
    jax.effects_barrier()
    *ends, times = (np.asarray(x)[:15].reshape(3, 5, *x.shape[1:]) for x in seen)
    np.testing.assert_array_equal(times, np.tile([0, 0.25, 0.5, 0.75, 1], (3, 1)))
    for mean in ends:
        np.testing.assert_array_equal(mean, np.repeat(mean[:, :1], 5, axis=1))
        assert not np.array_equal(mean[0], mean[1])


@pytest.mark.parametrize(
    ("pairs", "options", "match"),
    [
        ([], {}, "pairs is empty; wanted at least one pair of texts"),
        ([("the dog", "a cat")], {"steps": 1}, "steps is 1; wanted at least 2, the two ends"),
        ([("the dog", "a cat")] * 9 + [("a cat", "")], {}, "the text '' has 0 tokens; wanted 1"),
        ([("the dog", "a cat")], {"form": "best"}, "form is 'best'; wanted one of"),
    ],
)
def test_errors(model, monkeypatch, pairs, options, match):
    def decode(*args, **kwargs):
        raise AssertionError("written before the texts were checked")

    monkeypatch.setattr(TextModel, "decode", decode)
    with pytest.raises(ValueError, match=match):
        interpolate_pairs(model, pairs, **options)


def test_paths_are_scored(model, pairs):
    paths = interpolate_pairs(model, pairs)
    scores = interpolation_scores(pairs, paths, perplexity=lambda texts: 7)
    assert all(math.isfinite(value) for value in scores.values())
    assert scores["new"] > 0
    assert scores["perplexity_new"] == 7


# ---- scores


def test_bleu_by_hand():
    """Ten words; half way the first six are one end's, the last four the other's."""
    a, b = "a b c d e f g h i j", "k l m n o p q r s t"
    half = "a b c d e f q r s t"
    scores = interpolation_scores([(a, b)], [[a, half, "k l m n o p q r s x"]])
    want = 100 * (6 / 10 * 5 / 9 * 4 / 8 * 3 / 7) ** 0.25
    assert scores["bleu_a"] == pytest.approx(want)
    want = 100 * (4 / 10 * 3 / 9 * 2 / 8 * 1 / 7) ** 0.25
    assert scores["bleu_b"] == pytest.approx(want)
    want = 100 * (19 / 20 * 17 / 18 * 15 / 16 * 13 / 14) ** 0.25
    assert scores["bleu_ends"] == pytest.approx(want)
    assert interpolation_scores([(a, b)], [[a, half, b]])["bleu_ends"] == pytest.approx(100)


def test_bleu_is_of_the_corpus():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdef"), 9)) for _ in range(60)]
    pairs = list(zip(texts[:20], texts[20:40], strict=True))
    paths = [["x", "y", half, "y", "x"] for half in texts[40:]]
    scores = interpolation_scores(pairs, paths)
    for name, ends in (("bleu_a", texts[:20]), ("bleu_b", texts[20:40])):
        assert 1 < scores[name] == sacrebleu.corpus_bleu(texts[40:], [ends]).score
    assert scores["bleu_a"] != scores["bleu_b"]


@pytest.mark.parametrize(
    ("path", "largest", "detour", "distinct", "constant"),
    [
        (["a b c d", "a b c h", "a b g h", "a f g h", "e f g h"], 1 / 4, 1, 5, 0),
        (["a", "a", "a", "b c", "b c"], 1, 1, 2, 0),  # one jump
        (["a", "a", "a", "a", "a"], math.nan, math.nan, 1, 1),
        (["a", "b", "a", "a", "a"], 1 / 2, math.nan, 2, 0),  # there and back
        (["a b", "a c", "d c", "a c", "a b x"], 2 / 5, 5 / 1, 4, 0),
        (["", "a", "a b", "a b", "a b c"], 1 / 3, 1, 4, 0),
        (["a b", "", "", "", ""], 1, 1, 2, 0),
        (["", "", "", "", ""], math.nan, math.nan, 1, 1),
        (["a b", "a b", "c b"], 1, 1, 2, 0),
    ],
)
def test_smoothness_by_hand(path, largest, detour, distinct, constant):
    scores = interpolation_scores([("a b", "c d")], [path])
    assert scores["largest_step"] == pytest.approx(largest, nan_ok=True)
    assert scores["detour"] == pytest.approx(detour, nan_ok=True)
    assert scores["distinct_points"] == distinct
    assert scores["constant"] == constant


def test_means_leave_out_what_has_no_value():
    """One even path, one jump, one constant, one that returns, one that wanders."""
    paths = [
        ["a b c d", "a b c h", "a b g h", "a f g h", "e f g h"],
        ["a", "a", "a", "b c", "b c"],
        ["a", "a", "a", "a", "a"],
        ["a", "b", "a", "a", "a"],
        ["a b", "a c", "d c", "a c", "a b x"],
    ]
    scores = interpolation_scores([("a", "b")] * 5, paths)
    assert scores["largest_step"] == pytest.approx((1 / 4 + 1 + 1 / 2 + 2 / 5) / 4)
    assert scores["detour"] == pytest.approx((1 + 1 + 5) / 3)
    assert scores["distinct_points"] == pytest.approx((5 + 2 + 1 + 2 + 4) / 5)
    assert scores["constant"] == 1 / 5


def test_new_sentences():
    pairs, first, last = [("a", "b")] * 7, "x", "y"
    half_way = ["a", "b", "x", "y", "known", "", "new"]
    paths = [[first, half, last] for half in half_way]
    asked = []

    def perplexity(texts):
        asked.append(texts)
        return 12

    known = frozenset({"known", "more"})
    scores = interpolation_scores(pairs, paths, known=known, perplexity=perplexity)
    assert scores["new"] == pytest.approx(1 / 7)
    assert scores["perplexity_new"] == 12
    assert isinstance(scores["perplexity_new"], float)
    assert asked == [["new"]]
    open_world = interpolation_scores(pairs, paths)
    assert open_world["new"] == pytest.approx(2 / 7)
    assert math.isnan(open_world["perplexity_new"])
    # A sentence of another pair is new to this one; a new sentence counts as often as it comes.
    asked.clear()
    interpolation_scores([("a", "b"), ("c", "d")], [["a", "c", "b"]] * 2, perplexity=perplexity)
    assert asked == [["c"]]
    asked.clear()
    interpolation_scores([("a", "b")] * 2, [["a", "c", "b"]] * 2, perplexity=perplexity)
    assert asked == [["c", "c"]]


def test_no_new_sentence_has_no_perplexity():
    def perplexity(texts):
        raise AssertionError("asked about no text")

    scores = interpolation_scores([("a", "b")], [["a", "a", "b"]], perplexity=perplexity)
    assert scores["new"] == 0
    assert math.isnan(scores["perplexity_new"])


def test_empty_texts():
    """Neither end nor path has a word."""
    scores = interpolation_scores([("", "")], [[""] * 3])
    names = ("perplexity_new", "largest_step", "detour")
    assert all(math.isnan(scores.pop(name)) for name in names)
    assert scores == {
        "bleu_a": 0, "bleu_b": 0, "bleu_ends": 0, "new": 0, "constant": 1, "distinct_points": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "paths", "match"),
    [
        ([], [], "0 paths for 0 pairs; wanted as many, at least 1"),
        ([("a", "b")], [], "0 paths for 1 pairs; wanted as many"),
        ([("a", "b")], [["a"] * 3] * 2, "2 paths for 1 pairs; wanted as many"),
        ([("a", "b")], [["a"] * 4], r"paths have \[4\] texts; wanted one odd number of at least 3"),
        ([("a", "b")], [["a"]], r"paths have \[1\] texts; wanted one odd number"),
        ([("a", "b")], [[]], r"paths have \[0\] texts; wanted one odd number"),
        ([("a", "b")] * 2, [["a"] * 5, ["a"] * 3], r"paths have \[3, 5\] texts; wanted one odd"),
    ],
)
def test_scores_of_what_cannot_be_scored(pairs, paths, match):
    with pytest.raises(ValueError, match=match):
        interpolation_scores(pairs, paths)
