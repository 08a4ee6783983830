"""Likelihood, annealing, and the two bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import normal, posterior, prior
from scipy import special, stats

import nvib_jax as nvib
from nvib_jax import objective


@pytest.mark.parametrize("num_samples", [1, 3])
def test_mean_log_density_ratio_is_minus_the_exact_kls(num_samples):
    """10,000 draws, a zero pseudo-count, padding: within 5 standard errors (false alarm 2e-6)."""
    post, base = posterior(zeros=True), prior()
    keys = jax.random.split(jax.random.key(1), 10_000)

    @jax.jit
    @jax.vmap
    def ratio(key):
        draw = nvib.sample(key, post, num_samples=num_samples)
        return objective.log_density_ratio(draw, post, base)

    draws = np.asarray(ratio(keys), np.float64)
    exact = sum(
        kl(post, base, num_samples=num_samples, form="exact")
        for kl in (nvib.kl_gaussian, nvib.kl_dirichlet)
    )
    stderr = draws.std(0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(0) + exact) < 5 * stderr)
    assert np.all(stderr < 0.05 * exact)
    published = sum(
        kl(post, base, num_samples=num_samples) for kl in (nvib.kl_gaussian, nvib.kl_dirichlet)
    )
    assert np.max(np.abs(draws.mean(0) + published) / stderr) > 10  # power


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_log_density_ratio_against_float64(size):
    """Each draw, not the mean: within 1e-4 relative of the densities in float64, also at 1e6."""
    base = nvib.Prior.standard(2, alpha=3.0, alpha_delta=1.0)
    alpha = np.float32([[0.5, 2.0, 1.0, 4.0]]) * np.float32(size)
    post = nvib.Posterior(
        normal(1, 1, 4, 2), normal(2, 1, 4, 2), jnp.log(alpha), jnp.ones((1, 4), bool)
    )
    draw = nvib.sample(jax.random.key(0), post)
    got = objective.log_density_ratio(draw, post, base)
    z, mean = np.asarray(draw.mean, np.float64), np.asarray(post.mean, np.float64)
    std = np.exp(0.5 * np.asarray(post.log_variance, np.float64))
    want = (stats.norm.logpdf(z) - stats.norm.logpdf(z, mean, std)).sum()
    log_pi = np.asarray(draw.log_weights, np.float64)[0]
    log_pi -= special.logsumexp(log_pi)
    a, b = np.exp(np.asarray(post.log_alpha, np.float64)[0]), np.full(4, 6.0 / 4)
    for sign, c in ((1, b), (-1, a)):
        want += sign * (special.gammaln(c.sum()) - special.gammaln(c).sum() + (c * log_pi).sum())
    np.testing.assert_allclose(got, [want], rtol=1e-4, atol=1e-4)


def test_log_density_ratio_stays_finite():
    """At pseudo-counts of exp(-300), exp(300) and 0, with gradients."""
    post, base = posterior(zeros=True), prior()
    log_alpha = post.log_alpha.at[1, 1].set(-300.0).at[2, 1].set(300.0)
    post = nvib.Posterior(post.mean, post.log_variance, log_alpha, post.mask)

    def total(mean, log_variance, log_alpha):
        p = nvib.Posterior(mean, log_variance, log_alpha, post.mask)
        draw = nvib.sample(jax.random.key(0), p, num_samples=2)
        return jnp.sum(objective.log_density_ratio(draw, p, base))

    args = (post.mean, post.log_variance, post.log_alpha)
    value, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*args)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)
    assert grads[2][0, 2] == 0  # the zero pseudo-count


def test_log_density_ratio_errors():
    post, base = posterior(), prior()
    draw = nvib.sample(jax.random.key(0), posterior(tokens=6))
    with pytest.raises(
        ValueError, match="mixture has 7 components; wanted a multiple of the poste"
    ):
        objective.log_density_ratio(draw, post, base)


def test_iwae_is_monotone_in_draws_and_bounded_by_the_truth():
    """p = N(0, 1), likelihood N(x; z, 1), a poor q: ELBO < IWAE 4 < IWAE 64 < log p(x)."""
    rng = np.random.default_rng(0)
    x, z = 1.5, rng.normal(size=(20_000, 64)) * 1.5
    log_w = stats.norm.logpdf(x, z) + stats.norm.logpdf(z) - stats.norm.logpdf(z, 0, 1.5)
    log_w = jnp.float32(log_w)
    bounds = [float(jnp.mean(objective.iwae(log_w.reshape(-1, k), axis=1))) for k in (1, 4, 64)]
    truth = stats.norm.logpdf(x, 0, np.sqrt(2))
    assert bounds[0] < bounds[1] - 0.05 < bounds[2] - 0.1
    assert bounds[2] < truth + 1e-3
    np.testing.assert_allclose(bounds[0], np.mean(log_w), rtol=1e-5)
    assert objective.iwae(jnp.full((5, 2), -3e4)).shape == (2,)
    np.testing.assert_allclose(objective.iwae(jnp.full((5, 2), -3e4)), -3e4, rtol=1e-6)


def test_elbo_is_a_sum_of_nats():
    got = objective.elbo(*(jnp.float32([x]) for x in (-10.0, 2.0, 3.0, -1.5)))
    np.testing.assert_allclose(got, [-16.5])


def test_log_likelihood_counts_valid_tokens_only():
    logits, targets = normal(0, 2, 3, 5), jnp.array([[1, 2, 0], [4, 3, 3]])
    mask = jnp.array([[1, 1, 0], [1, 0, 0]], bool)
    got = objective.log_likelihood(logits, targets, mask)
    log_p = np.log(special.softmax(np.asarray(logits, np.float64), -1))
    want = [log_p[0, 0, 1] + log_p[0, 1, 2], log_p[1, 0, 4]]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    low = objective.log_likelihood(logits.astype(jnp.bfloat16), targets, mask)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, want, rtol=1e-2)
    with pytest.raises(ValueError, match="mask has dtype float32; wanted bool"):
        objective.log_likelihood(logits, targets, mask.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"targets has shape \(2, 2\); wanted \[B, T\] = \(2, 3\)"):
        objective.log_likelihood(logits, targets[:, :2], mask)


ANNEALING = [
    ({"schedule": "constant"}, {0: 1.0, 9: 1.0}),
    (
        {"schedule": "linear", "start": 10, "steps": 20},
        {0: 0.0, 10: 0.0, 15: 0.25, 30: 1.0, 99: 1.0},
    ),
    ({"schedule": "cosine", "start": 10, "steps": 20}, {5: 0.0, 20: 0.5, 15: 0.1464466, 40: 1.0}),
    ({"schedule": "cyclic", "steps": 5, "cycle": 10}, {0: 0.0, 4: 0.8, 7: 1.0, 10: 0.0, 12: 0.4}),
    (
        {"schedule": "cyclic", "start": 3, "steps": 5, "cycle": 10},
        {0: 0.0, 2: 0.0, 7: 0.8, 13: 0.0},
    ),
    # Without a ramp, 1 from the start on, as the docstring says of start + steps.
    ({"schedule": "linear", "start": 4}, {3: 0.0, 4: 1.0, 5: 1.0}),
    ({"schedule": "cosine"}, {0: 1.0, 5: 1.0}),
    ({"schedule": "cyclic", "start": 3, "cycle": 2}, {2: 0.0, 3: 1.0, 4: 1.0}),
]


@pytest.mark.parametrize(("options", "want"), ANNEALING)
def test_anneal(options, want):
    steps = jnp.array(list(want), jnp.int32)
    got = jax.jit(lambda s: objective.anneal(s, **options))(steps)
    np.testing.assert_allclose(got, list(want.values()), atol=1e-6)
    for step, value in want.items():
        np.testing.assert_allclose(objective.anneal(step, **options), value, atol=1e-6)


def test_anneal_errors():
    with pytest.raises(ValueError, match="schedule is 'nope'; wanted one of 'constant', 'linear'"):
        objective.anneal(0, schedule="nope")
    with pytest.raises(ValueError, match="steps is -1; wanted at least 0"):
        objective.anneal(0, schedule="linear", steps=-1)
    with pytest.raises(ValueError, match="cycle is 4 steps; wanted at least the ramp's 5"):
        objective.anneal(0, schedule="cyclic", steps=5, cycle=4)


def test_scales():
    kl, components = jnp.float32([12.0, 6.0]), jnp.array([3, 2], jnp.int32)
    np.testing.assert_allclose(objective.published_scale(kl, components), [4.0, 3.0])
    np.testing.assert_allclose(objective.published_scale(kl, components, 2), [2.0, 1.5])
    assert objective.elbo_weights(1e-3, 1.0, 256) == (1e-3 / 256, 1.0)


def test_budgets_by_hand():
    """Two tokens and four, 3 nats: 1.5 and .75 a token."""
    kl, tokens = jnp.float32([3.0, 3.0]), jnp.array([2, 4], jnp.int32)
    np.testing.assert_allclose(objective.budget(kl, tokens), [3.0, 3.0])
    np.testing.assert_allclose(objective.budget(kl, tokens, free=1.0), [3.0, 4.0])
    np.testing.assert_allclose(objective.budget(kl, tokens, capacity=1.0), [1.0, 1.0])
    slopes = jax.vmap(jax.grad(lambda k, n: objective.budget(k[None], n[None], free=1.0)[0]))
    np.testing.assert_allclose(slopes(kl, tokens), [1.0, 0.0])
    slopes = jax.vmap(jax.grad(lambda k, n: objective.budget(k[None], n[None], capacity=1.0)[0]))
    np.testing.assert_allclose(slopes(kl, tokens), [1.0, -1.0])


def test_the_ratio_of_a_mixture_is_of_the_vectors_that_are_there():
    """An empty component changes nothing: neither the densities nor the prior's n."""
    prior = nvib.Prior.standard(2, alpha_delta=0.5)
    mean = jax.random.normal(jax.random.key(0), (1, 3, 2))

    def both(log_alpha, n):
        posterior = nvib.make_posterior(
            mean[:, :n], 0 * mean[:, :n], log_alpha[:, :n], jnp.ones((1, n), bool), prior
        )
        mixture = nvib.Mixture(
            jnp.concatenate([jnp.zeros((1, 1, 2)), mean[:, :n] + 0.3], 1),
            None,
            jnp.log(jnp.array([[0.2, 0.5, 0.3, 0.0]]))[:, : n + 1],
            posterior.mask,
        )
        return (
            objective.log_density_ratio(mixture, posterior, prior),
            nvib.kl_dirichlet(posterior, prior, form="exact"),
        )

    log_alpha = jnp.log(jnp.array([[1.5, 0.7, 0.0]]))
    np.testing.assert_allclose(both(log_alpha, 3), both(log_alpha, 2), rtol=1e-6)
