"""Mutual information and active dimensions where both are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import nvib_jax as nvib
from nvib_jax.evaluation.collapse import collapse_report, mutual_information
from nvib_jax.text_model import TextModel

TEXTS = ["the dog sleeps", "a cat that often waits runs", "the queen waits", "soldiers rest"]


def posterior_of(means, variance=1.0, alpha=1.0):
    """One vector a text."""
    mean = jnp.asarray(means, jnp.float32)[:, None, None]
    log_alpha = jnp.broadcast_to(jnp.log(jnp.asarray(alpha, jnp.float32)), (len(means),))
    latent = tiny.model(dim=2, heads=1, latent_heads=1).latent
    mean = jnp.concatenate([mean, mean * 0], axis=-1)
    return latent, nvib.make_posterior(
        mean,
        jnp.full_like(mean, math.log(variance)),
        log_alpha[:, None],
        jnp.ones((len(means), 1), bool),
        latent.prior,
    )


def information(latent, posterior, draws=50):
    @jax.jit
    def one(posterior, seed):
        return mutual_information(latent, nvib.sample(jax.random.key(seed), posterior), posterior)

    return float(np.mean([one(posterior, jnp.int32(seed)) for seed in range(draws)]))


def test_equal_posteriors_tell_nothing():
    assert information(*posterior_of([0.0] * 16), draws=2) == pytest.approx(0, abs=1e-5)


def test_posteriors_far_apart_tell_all():
    latent, posterior = posterior_of(np.arange(16) * 100.0)
    assert information(latent, posterior, draws=2) == pytest.approx(math.log(16), rel=1e-5)


def test_two_means_by_quadrature():
    """I of an even mixture of N(-1, 1) and N(1, 1); 4,000 draws, 5 errors of .008."""
    z = np.linspace(-12, 12, 20_001)
    p = [np.exp(-((z - m) ** 2) / 2) / math.sqrt(2 * math.pi) for m in (-1, 1)]
    mean = (p[0] + p[1]) / 2
    truth = np.trapezoid(p[0] * np.log(p[0] / mean), z)
    latent, posterior = posterior_of([-1.0, 1.0] * 40)
    assert information(latent, posterior) == pytest.approx(truth, abs=0.04)


def test_texts_with_other_numbers_of_vectors_are_told_apart():
    """Half have none but the prior's: one bit, wherever the empty vector stands."""
    latent, posterior = posterior_of([0.0] * 8, alpha=[1.0, 0.0] * 4)
    assert information(latent, posterior, draws=2) == pytest.approx(math.log(2), rel=1e-4)


def test_order_is_that_of_the_vectors_that_are_there():
    """The same vector in the first and in the second place of two is the same density."""
    latent = tiny.model(dim=2, heads=1, latent_heads=1).latent
    mean = jnp.ones((2, 2, 2))
    log_alpha = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    posterior = nvib.make_posterior(mean, mean * 0, log_alpha, jnp.ones((2, 2), bool), latent.prior)
    assert information(latent, posterior, draws=2) == pytest.approx(0, abs=1e-5)


def test_report_of_a_run():
    model = TextModel.load(tiny.trained()[0].train.run_dir)
    report = collapse_report(model, TEXTS * 3)
    assert report["active_dimensions"] + report["passive_dimensions"] == 16
    assert len(report["kl_per_dimension"]) == 16
    assert sum(report["kl_per_dimension"]) == pytest.approx(report["kl_per_vector"], rel=1e-5)
    assert 0 <= report["mutual_information"] <= report["mutual_information_most"] + 1e-4
    assert report["mutual_information_most"] == pytest.approx(math.log(12))
    # Per vector times vectors is the exact KL of the bound.
    exact = model.measure(
        lambda m, t, mask, key: m.latent.costs(m.encode(t, mask))["gaussian"], TEXTS
    )
    vectors = sum(len(row) for row in model.tokenize(TEXTS))
    single = collapse_report(model, TEXTS)["kl_per_vector"]
    assert single * vectors == pytest.approx(exact.sum(), rel=1e-4)


def test_a_collapsed_dimension_is_passive():
    model = TextModel.load(tiny.trained()[0].train.run_dir)
    params = dict(model.params)
    params["latent.mean.kernel"] = params["latent.mean.kernel"].at[:, :6].set(0.0)
    import dataclasses

    cut = dataclasses.replace(model, params=params, _compiled={})
    before = collapse_report(model, TEXTS)["active_dimensions"]
    assert before == 16
    assert collapse_report(cut, TEXTS)["active_dimensions"] == 10
