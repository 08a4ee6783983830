"""The kernel between mixtures, against float64, its own integral, and its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import mixture, posterior
from tolerance import assert_close

import nvib_jax as nvib
from nvib_jax.kernels import log_kernel, log_self_kernel, log_similarity

SIDES = {"gaussians": (False, False), "points": (True, True), "left": (True, False),
         "right": (False, True)}  # fmt: skip


def sides(kind):
    left, right = SIDES[kind]
    return mixture(impulses=left), mixture(batch=2, tokens=4, impulses=right, seed=7)


def plainly(a, b, h):
    """The double sum, pair by pair in float64."""

    def parts(m, row):
        there = np.asarray(m.present)[row]
        weights = np.exp(np.asarray(m.log_weights, np.float64)[row][there])
        mean = np.asarray(m.mean, np.float64)[row][there]
        spread = np.zeros_like(mean)
        if m.log_variance is not None:
            spread = np.exp(np.asarray(m.log_variance, np.float64))[row][there]
        return weights / weights.sum(), mean, spread

    found = np.zeros((len(a.mask), len(b.mask)))
    for i, j in np.ndindex(*found.shape):
        (pi, mu, s), (rho, nu, t) = parts(a, i), parts(b, j)
        for k, n in np.ndindex(len(pi), len(rho)):
            c2 = s[k] + t[n] + h * h
            terms = np.sqrt(h * h / c2) * np.exp(-((mu[k] - nu[n]) ** 2) / (2 * c2))
            found[i, j] += pi[k] * rho[n] * terms.prod()
    return np.log(found)


@pytest.mark.parametrize("h", [0.5, 3.0])
@pytest.mark.parametrize("kind", SIDES)
def test_the_double_sum(kind, h):
    """To 1e-5 of the largest logarithm, whichever side has variances, in either order."""
    a, b = sides(kind)
    want = plainly(a, b, h)
    assert_close(log_kernel(a, b, h), want)
    assert_close(log_kernel(b, a, jnp.float32(h)), want.T)


def test_the_mean_of_a_gaussian_kernel_over_draws():
    """200,000 pairs of points; within 5 standard errors, false alarm 6e-7 for each of 6 numbers."""
    a, b = sides("gaussians")
    rng, count, h = np.random.default_rng(3), 200_000, 2.0

    def points(m, row):
        weights = np.exp(np.asarray(m.log_weights, np.float64)[row])
        chosen = rng.choice(len(weights), count, p=weights / weights.sum())
        mean, log_variance = (np.asarray(x)[row][chosen] for x in (m.mean, m.log_variance))
        return mean + np.exp(0.5 * log_variance) * rng.normal(size=mean.shape)

    got = np.exp(log_kernel(a, b, h))
    for i, j in np.ndindex(*got.shape):
        square = np.square(points(a, i) - points(b, j)).sum(-1)
        values = np.exp(-square / (2 * h * h))
        assert abs(values.mean() - got[i, j]) <= 5 * values.std() / np.sqrt(count)


@pytest.mark.parametrize("kind", ["gaussians", "points"])
def test_an_inner_product(kind):
    """Symmetric, positive definite, at most 1; the cosine of a mixture with itself is 1."""
    a, b = sides(kind)
    gram = np.exp(np.asarray(log_kernel(a, a, 2.0), np.float64))
    assert_close(gram, gram.T)
    assert np.linalg.eigvalsh(gram).min() > 0
    assert gram.max() <= 1
    assert_close(log_self_kernel(a, 2.0), np.log(np.diag(gram)))
    cosine = np.asarray(log_similarity(a, a, 2.0))
    np.testing.assert_allclose(np.diag(cosine), 0.0, atol=2e-5)
    assert (cosine - np.diag(np.diag(cosine))).max() < 1e-4
    assert (log_similarity(a, b, 2.0) < 0).all()


def test_a_union_is_the_weighted_sum_of_kernels():
    """Bilinear: k((1 - t) P + t Q, R) = (1 - t) k(P, R) + t k(Q, R), and weights need no sum."""
    a, b = sides("gaussians")
    c = mixture(seed=11)
    union = nvib.interpolate(a, c, 0.3)
    parts = 0.7 * jnp.exp(log_kernel(a, b, 1.5)) + 0.3 * jnp.exp(log_kernel(c, b, 1.5))
    assert_close(jnp.exp(log_kernel(union, b, 1.5)), parts)
    heavier = dataclasses.replace(union, log_weights=union.log_weights + 3.0)
    assert_close(log_kernel(heavier, b, 1.5), log_kernel(union, b, 1.5))


@pytest.mark.parametrize("impulses", [True, False])
def test_what_is_not_present_means_nothing(impulses):
    """NaN in padding reaches neither the value nor a gradient; a mixture of nothing is -inf."""
    a, b = mixture(impulses=impulses), mixture(seed=7, impulses=impulses)
    hole = jnp.where(a.present[..., None], a.mean, jnp.nan)
    emptied = dataclasses.replace(b, log_weights=b.log_weights.at[0].set(-jnp.inf))

    def total(mean):
        found = log_kernel(dataclasses.replace(a, mean=mean), emptied, 2.0)
        return jnp.sum(jnp.where(jnp.isneginf(found), 0.0, found)), found

    (_, found), slope = jax.value_and_grad(total, has_aux=True)(hole)
    assert jnp.isneginf(found[:, 0]).all()
    assert_close(found[:, 1:], log_kernel(a, b, 2.0)[:, 1:])
    assert jnp.isfinite(slope).all()
    assert (slope[~a.present] == 0).all()


@pytest.mark.parametrize("kind", ["gaussians", "left"])
def test_gradients(kind):
    """Of means, variances, weights and bandwidth, against central differences in float32."""
    a, b = sides(kind)

    def loss(a, b, h):
        return jnp.sum(log_kernel(a, b, h) * jnp.arange(1, 7, dtype=jnp.float32).reshape(3, 2))

    names = [n for n in ("mean", "log_variance") if getattr(a, n) is not None]
    rng = np.random.default_rng(5)
    where = jnp.asarray(a.present)
    steps = {n: jnp.asarray(rng.normal(size=getattr(a, n).shape), jnp.float32) for n in names}
    steps["log_weights"] = jnp.asarray(rng.normal(size=where.shape), jnp.float32)

    def at(e):
        moved = {n: getattr(a, n) + jnp.float32(e) * steps[n] for n in steps}
        return loss(dataclasses.replace(a, **moved), b, jnp.float32(2.0) + jnp.float32(e))

    slope = jax.grad(at)(jnp.float32(0.0))
    numeric = (at(jnp.float32(0.02)) - at(jnp.float32(-0.02))) / 0.04
    assert abs(slope - numeric) <= 2e-3 * abs(numeric)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a, b: (a, b, 0.0), r"bandwidth is 0.0; wanted more than 0"),
        (lambda a, b: (a, b, "wide"), r"bandwidth is 'wide'; wanted a number or an array"),
        (lambda a, b: (a, b, jnp.ones(2)), r"bandwidth is an array of shape \(2,\); wanted one"),
        (lambda a, b: (a, b.mean, 1.0), r"b is an array of shape .*; wanted a Mixture"),
        (
            lambda a, b: (a, mixture(dim=6), 1.0),
            r"b.mean has shape \(3, 6, 6\); wanted \[B, T, D\] = \(3, 6, 8\)",
        ),
    ],
)
def test_wrong_arguments(change, said):
    with pytest.raises(ValueError, match=said):
        log_kernel(*change(*sides("gaussians")))


def test_a_posterior_is_no_mixture():
    with pytest.raises(ValueError, match="a is a Posterior; wanted a Mixture"):
        log_kernel(posterior(), mixture(), 1.0)


def test_mixtures_of_a_models_size():
    """Of 25 impulses in 128 dimensions: XLA's CPU compiler once gave 8e32 for the squares there.

    It fused two products, one of them with a broadcast number, and read memory that nothing wrote.
    """
    a, b = mixture(3, 24, 128, impulses=True), mixture(3, 24, 128, impulses=True, seed=7)
    assert_close(log_kernel(a, b, 11.0), plainly(a, b, 11.0))
    assert_close(log_kernel(a, a, 11.0), plainly(a, a, 11.0))
