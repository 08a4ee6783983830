"""The search for taus: resumed, by its gradient, never worse than nothing; its rivals; figures."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_made import made, pairs

from nvib_jax import pretrained
from nvib_jax.pretrained.evaluate import difference, figures, untreated, written
from nvib_jax.pretrained.knobs import KINDS, summed
from nvib_jax.pretrained.overlap import SCORES
from nvib_jax.pretrained.search import Search, _Nats, chosen, search

DEV, TEST = pairs(24, 6), pairs(24, 7)
MANY = pairs(64, 6)  # two batches


def easiest_first(model, pairs):
    """Texts in the order of their nats a token, so that a part of them is easier than all."""
    scores = model.score(*pairs)
    order = np.argsort(scores.nats / scores.tokens)
    return tuple([part[i] for i in order] for part in pairs)


@pytest.fixture(scope="module")
def model():
    return made("bart")


@pytest.fixture(scope="module")
def prior(model):
    return model.empirical_prior(*pairs(24, 5))


@pytest.mark.parametrize("method", ["random", "halving", "gradient"])
def test_it_is_never_worse_than_nothing_and_goes_on_where_it_stopped(
    model, prior, method, tmp_path
):
    how = {"method": method, "trials": 6, "kinds": ("alpha", "sigma"), "form": "published"}
    texts = easiest_first(model, MANY)
    whole = search(model, prior, *texts, **how)
    assert whole.figure <= whole.trials[0]["figure"]
    assert whole.trials[0]["knobs"]["alpha.cross"] == math.inf
    on_all = [trial["figure"] for trial in whole.trials if trial["share"] == 1]
    assert whole.figure == min(on_all)
    on_parts = [trial["figure"] for trial in whole.trials if trial["share"] < 1]
    assert bool(on_parts) == (method == "halving")
    if on_parts:  # otherwise nothing here would be chosen by mistake
        assert min(on_parts) < whole.figure
    kept = search(model, prior, *texts, **how, folder=tmp_path)
    assert kept.trials == whole.trials
    file = tmp_path / "trials.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # killed in the middle of a line
    again = search(model, prior, *texts, **how, folder=tmp_path)
    assert [t["knobs"] for t in again.trials] == [t["knobs"] for t in whole.trials]
    assert again.knobs == whole.knobs
    assert len(file.read_text().splitlines()) == len(lines) + 1


@pytest.mark.parametrize("form", ["expected_logit", "exact"])
def test_its_gradient_is_that_of_finite_differences(model, prior, form):
    # With larger matrices attention matters more, and differences are above float32's noise.
    params = {n: p * (2.5 if p.ndim > 1 else 1.0) for n, p in model.params.items()}
    model = dataclasses.replace(model, params=params)
    objective = _Nats(model, model.empirical_prior(*pairs(24, 5)), *DEV, form)
    knobs = {"alpha.encoder": 0.5, "alpha.cross": 1.0, "sigma.cross": 0.3, "temperature": 1.2}
    knobs |= {"scale.decoder": 0.9}
    _, gradient = objective.gradient(knobs)
    for name in knobs:
        step = 0.1
        up, down = (objective.figure(knobs | {name: knobs[name] + s}) for s in (step, -step))
        assert gradient[name] == pytest.approx((up - down) / (2 * step), rel=0.05, abs=2e-5), name
    assert sum(abs(slope) > 2e-4 for slope in gradient.values()) >= 2


def test_knobs_that_are_off_are_the_model(model, prior):
    off = {
        **{f"{kind}.{where}": KINDS[kind].off for kind in ("alpha", "sigma", "scale")
           for where in ("encoder", "decoder", "cross")},
        "temperature": 1.0,
    }  # fmt: skip
    plain = figures(model, prior, untreated(), *TEST)
    treated = figures(model, prior, Search(off, 0.0, form="exact"), *TEST)
    np.testing.assert_allclose(treated.nats, plain.nats, rtol=1e-5)
    np.testing.assert_allclose(plain.nats, model.score(*TEST).nats, rtol=1e-5)
    assert (plain.right == model.score(*TEST).right).all()


def test_a_scale_is_a_scale_of_the_logits(model, prior):
    """Of attention: at 0 every key has the same weight, so that no query's words matter."""
    nothing = {f"scale.{name}": 0.0 for name in ("encoder", "decoder", "cross")}
    scaled = chosen(model, prior, Search(nothing, 0.0))
    names = [
        n for n in model.params if n.endswith(("attention.query.kernel", "cross.query.kernel"))
    ]
    assert len(names) == 6
    assert all((scaled.params[name] == 0).all() for name in names)
    found = figures(model, prior, Search(nothing, 0.0), *TEST)
    np.testing.assert_allclose(found.nats, scaled.score(*TEST).nats, rtol=1e-5)


def test_a_temperature_is_fitted_by_descent(model, prior):
    """As well as by trying all of a fine grid."""
    found = search(model, prior, *DEV, kinds=("temperature",), trials=60)
    assert found.figure <= found.trials[0]["figure"]
    grid = [
        _Nats(model, prior, *DEV, "exact").figure({"temperature": t})
        for t in np.linspace(0.5, 3.0, 26)
    ]
    assert found.figure <= min(grid) + 1e-4


def test_the_interval_is_that_of_the_same_texts(model, prior):
    plain = figures(model, prior, untreated(), *TEST)
    assert difference(plain, plain) == {"difference": 0.0, "low": 0.0, "high": 0.0}
    worse = dataclasses.replace(plain, nats=plain.nats + 0.1 * plain.tokens)
    found = difference(plain, worse)
    assert all(value == pytest.approx(0.1) for value in found.values())
    noisy = dataclasses.replace(
        plain, nats=plain.nats + np.random.default_rng(0).normal(0.0, 1.0, plain.nats.shape)
    )
    found = difference(plain, noisy)
    error = 1.0 * len(plain.nats) ** 0.5 / plain.tokens.sum()
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.5)


def test_passes_with_dropout_are_averaged(model, prior):
    dropping = dataclasses.replace(
        model, architecture=dataclasses.replace(model.architecture, dropout=0.3)
    )
    from nvib_jax.models.params import merge, split

    module = merge(model.graph, model.params)
    module.architecture = dropping.architecture
    dropping = dataclasses.replace(dropping, graph=split(module)[0], _compiled={})
    one, eight = (figures(dropping, prior, untreated(), *TEST, passes=n) for n in (1, 8))
    none = figures(dropping, prior, untreated(), *TEST)
    assert not np.allclose(one.nats, none.nats)
    assert eight.nats.sum() < one.nats.sum()  # the mean of probabilities, by Jensen


def test_the_likeliest_token_of_passes_is_that_of_their_mean():
    """Two passes that differ over the first place agree on the second one of all."""
    passes = np.log(np.float32([[0.5, 0.1, 0.4], [0.1, 0.5, 0.4]]))
    total = summed(lambda key: 7.0 + jnp.asarray(passes)[key], jnp.arange(2), passes[0] - 3.0)
    np.testing.assert_allclose(jax.nn.softmax(total), [0.3, 0.3, 0.4], rtol=1e-6)


def test_what_is_written_has_its_figures(model, prior):
    found = written(model, prior, untreated(), *TEST)
    assert set(found) == {*SCORES, "length_ratio", "length_correlation"}
    assert 0 <= found["bleu"] < 50


def test_texts_are_written_and_compared(tmp_path):
    """With a model that writes something: the best score is the largest, on all texts."""
    from nvib_jax.pretrained.train import TrainingConfig, train

    texts, targets = pairs(48, 3)
    config = TrainingConfig(steps=60, batch_size=16, learning_rate=1e-2)
    model = train(made("bart"), texts, targets, config)
    prior = model.empirical_prior(texts, targets)
    found = search(
        model, prior, texts[:18], targets[:18], objective="rouge1", method="halving", trials=3
    )
    plain = SCORES["rouge1"](model.generate(texts[:18]), targets[:18])
    assert found.trials[0]["figure"] == pytest.approx(plain)
    assert plain > 5
    on_all = [trial["figure"] for trial in found.trials if trial["share"] == 1]
    assert found.figure == max(on_all)
    assert min(trial["figure"] for trial in found.trials) < plain
    best = written(model, prior, found, texts[:18], targets[:18])
    assert best["rouge1"] == pytest.approx(found.figure)


def test_objectives_that_cannot_be(model, prior):
    def refused(said, of=model, measured=prior, **how):
        with pytest.raises(ValueError, match=said):
            search(of, measured, *DEV, **{"objective": "bleu", "method": "random", **how})

    refused("has no gradient; wanted method .random. or .halving.", method="gradient")
    refused("'bleu', and a temperature of the output changes no text", kinds=("temperature",))
    refused("objective is 'blue'; wanted one of 'nats', 'bleu', 'chrf'", objective="blue")
    gpt2 = made("gpt2")
    with pytest.raises(ValueError, match="written for others, which a gpt2 model does not do"):
        search(gpt2, gpt2.empirical_prior(DEV[0]), DEV[0], objective="chrf", method="random")


def test_a_model_of_scaled_weights_is_kept_as_such(model, prior, tmp_path):
    """It is not the model that its readings would be of, so that its weights are written."""
    scaled = chosen(model, prior, Search({"scale.cross": 0.5, "alpha.cross": 1.0}, 0.0))
    assert scaled.digest != model.digest
    scaled.save(tmp_path)
    again = pretrained.load(tmp_path)
    np.testing.assert_array_equal(again.score(*TEST).nats, scaled.score(*TEST).nats)


def test_trials_are_json(tmp_path, model, prior):
    search(model, prior, *DEV, trials=2, method="random", folder=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [row["trial"] for row in rows] == [0, 1, 2]
    assert jax.tree.all(jax.tree.map(lambda v: jnp.isscalar(v), rows[1]["knobs"]))
