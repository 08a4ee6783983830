"""Bounds are bounds: against quadrature, against each other, and against the grammar itself."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import tiny

import nvib_jax as nvib
from nvib_jax import objective
from nvib_jax.data import default_grammar, prepare
from nvib_jax.evaluation import likelihood
from nvib_jax.evaluation.likelihood import (
    RunningMean,
    bound_terms,
    evidence_bound,
    group_sizes,
    importance_bounds,
    log_importance_weights,
    ratio,
    standard_error,
)
from nvib_jax.text_model import TextModel

TEXTS = ["the dog sleeps", "a cat that often waits runs", "the queen waits", "soldiers rest"]
NOISE = 0.5  # of the toy decoder


@pytest.fixture(scope="module")
def model():
    return TextModel.load(tiny.trained()[0].train.run_dir)


# ---- a decoder whose likelihood is known


def toy_log_likelihood(x: float) -> float:
    """x = sum_i pi_i z_i + NOISE e, z_i ~ N(0, 1), pi ~ Dir(prior of one token): by quadrature.

    Given the weights x is N(0, sum pi^2 + NOISE^2); two weights are (w, 1 - w) with a beta's w.
    """
    total = 1 + 0.5  # alpha_0^p + alpha_delta n, shared by two components
    weight = scipy.stats.beta(total / 2, total / 2)

    def integrand(w):
        spread = math.sqrt(w**2 + (1 - w) ** 2 + NOISE**2)
        return weight.pdf(w) * scipy.stats.norm.pdf(x, scale=spread)

    return math.log(scipy.integrate.quad(integrand, 0, 1, epsabs=1e-10)[0])


def toy_log_weights(x: float, draws: int) -> np.ndarray:
    """`log p(x|F) p(F)/q(F|x)` under a posterior that is near, and not, the true one."""
    prior = nvib.Prior.standard(1, alpha_delta=0.5)
    posterior = nvib.make_posterior(
        jnp.full((draws, 1, 1), 0.7 * x),
        jnp.full((draws, 1, 1), math.log(0.5)),
        jnp.full((draws, 1), math.log(1.5)),
        jnp.ones((draws, 1), bool),
        prior,
    )
    drawn = nvib.sample(jax.random.key(0), posterior)
    seen = jnp.sum(jnp.exp(drawn.log_weights) * drawn.mean[..., 0], axis=-1)
    log_p = scipy.stats.norm.logpdf(x, np.asarray(seen, np.float64), NOISE)
    return log_p + np.asarray(objective.log_density_ratio(drawn, posterior, prior), np.float64)


@pytest.mark.parametrize("x", [0.3, 1.6])
def test_the_bound_rises_to_the_likelihood_of_a_linear_gaussian_decoder(x):
    """200,000 draws in groups of k; 5 standard errors: false alarms below 1e-5."""
    truth, log_w = toy_log_likelihood(x), toy_log_weights(x, 200_000)
    means, errors = {}, {}
    for k in (1, 10, 100, 2000):
        group = np.asarray(objective.iwae(jnp.asarray(log_w.reshape(-1, k), jnp.float32), axis=1))
        means[k], errors[k] = group.mean(), standard_error(group)
    for k in (1, 10, 100):
        assert means[k] < truth + 5 * errors[k]
    assert means[1] < means[10] < means[100] < means[2000] + 1e-6
    assert truth - means[1] > 20 * errors[1]  # the ELBO is not tight here
    assert abs(means[2000] - truth) < 5 * errors[2000] + 1e-3


# ---- streaming


def test_running_means_are_the_bounds_of_all_draws_at_once():
    log_w = np.random.default_rng(0).normal(0, 5, (100, 3))
    for k in (1, 10, 100):
        group = RunningMean(k, 3)
        for row in log_w:
            group.add(row)
        parts = jnp.asarray(log_w.reshape(100 // k, k, 3), jnp.float32)
        np.testing.assert_allclose(group.mean(), objective.iwae(parts, axis=1).mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("draws", "sizes"),
    [(1, [1]), (5, [1, 5]), (10, [1, 10]), (20, [1, 10, 20]), (5000, [1, 10, 100, 1000, 5000])],
)
def test_group_sizes_divide_one_another(draws, sizes):
    assert group_sizes(draws) == sizes


@pytest.mark.parametrize("draws", [0, 25, 150])
def test_draws_that_do_not_divide(draws):
    with pytest.raises(ValueError, match=f"draws is {draws}; wanted 1 to 10 or a multiple of"):
        group_sizes(draws)


def test_bounds_rise_with_k_for_every_sentence(model):
    bounds = importance_bounds(model, TEXTS, draws=20)
    assert list(bounds) == [1, 10, 20]
    assert (bounds[1] < bounds[10]).all()
    assert (bounds[10] <= bounds[20]).all()


def test_one_draw_of_many_is_the_elbo(model):
    """IWAE_1 over 400 draws and the analytic KLs agree within 5 errors: false alarms 1e-5."""
    bounds = importance_bounds(model, TEXTS[:2], draws=400)[1]
    many = TEXTS[:2] * 100  # a draw each
    terms = model.measure(bound_terms, many, 1)
    log_count = likelihood.log_count_probability(model.count_probabilities, terms[2])
    elbos = (terms[0] + log_count - terms[1]["gaussian"] - terms[1]["dirichlet"]).reshape(-1, 2)
    spread = importance_spread(model, TEXTS[:2])
    error = np.hypot(elbos.std(0) / 10, spread / 20)
    assert (np.abs(bounds - elbos.mean(0)) < 5 * error).all()


def importance_spread(model, texts):
    """Standard deviation of a sentence's log-weights."""
    run = model.compiled(log_importance_weights, draws=10)
    found = []
    for part, tokens, mask in model.batches(model.tokenize(texts)):
        for i in range(20):
            weights, _ = run(model.params, tokens, mask, jax.random.key(i + 100))
            found.append(np.asarray(weights)[:, : len(part)])
    return np.concatenate(found).std(axis=0)


def test_no_model_beats_the_source(model):
    """Mean bound of held-out sentences below the grammar's own, by more than 3 errors."""
    texts = prepare(tiny.config().data).sentences("test", 10)
    bounds = importance_bounds(model, texts, draws=10)
    source = np.array([default_grammar().log_prob(text) for text in texts])
    gap = source - bounds[10]
    assert gap.mean() > 3 * standard_error(gap)


def test_a_plain_autoencoder_has_no_bound(model, monkeypatch):
    monkeypatch.setattr(likelihood, "is_variational", lambda model: False)
    found = evidence_bound(model, TEXTS)
    assert math.isnan(found["elbo_sentence"])
    assert math.isfinite(found["log_likelihood"])
    with pytest.raises(ValueError, match="has no density; wanted a variational latent"):
        importance_bounds(model, TEXTS)


def test_a_ratio_and_its_error_by_hand():
    values, counts = np.array([-2.0, -6.0]), np.array([1.0, 3.0])
    assert ratio(values, counts) == (-2.0, 0.0)
    mean, error = ratio(np.array([-2.0, -4.0]), np.array([1.0, 3.0]))
    assert mean == -1.5
    assert error == pytest.approx(np.std([-0.5, 0.5], ddof=1) / math.sqrt(2) / 2)
    assert math.isnan(standard_error(np.array([1.0])))
