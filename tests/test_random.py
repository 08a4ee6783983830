"""The samplers as samplers: goodness of fit, gradients of moments, the edges.

Seeds are fixed, so a test either always passes or never; the false-alarm rates stated are those of
a fresh seed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import nvib_jax as nvib

KEY = jax.random.key(7)
ALPHAS = np.float32(10.0 ** np.arange(-6, 7))


def log_gamma_cdf(alpha):
    """The cdf of log x, x ~ Gamma(alpha), where exp(log x) may underflow."""

    def cdf(y):
        with np.errstate(over="ignore"):
            small = np.exp(alpha * y - special.gammaln(alpha + 1))
            return np.where(y < -30, small, special.gammainc(alpha, np.exp(np.minimum(y, 80))))

    return cdf


@jax.jit
def draw(log_alpha):
    many = jnp.broadcast_to(log_alpha, (20_000, *log_alpha.shape))
    return nvib.random.loggamma(KEY, many)


def test_loggamma_goodness_of_fit():
    """Kolmogorov-Smirnov, 20,000 draws each of 13 alphas; false alarm 13e-6."""
    x = np.asarray(draw(jnp.log(ALPHAS)), np.float64)
    for i, alpha in enumerate(ALPHAS.astype(np.float64)):
        # The cdf at the alpha that the float32 logarithm really names.
        named = np.exp(np.float64(np.log(ALPHAS)[i]))
        assert stats.kstest(x[:, i], log_gamma_cdf(named)).pvalue > 1e-6, alpha
        if alpha < 1e3:  # power: a shape 10 % off, a spread 10 % off
            wrong = 1.1 * named if alpha <= 10 else named + 0.1 * np.sqrt(named)
            assert stats.kstest(x[:, i], log_gamma_cdf(wrong)).pvalue < 1e-6, alpha


def test_large_alpha_switch_is_seamless():
    """Just below and just above the switch at 1000: the same law (KS, false alarm 2e-6)."""
    alphas = np.float64([999.9, 1000.2])
    x = np.asarray(draw(jnp.log(jnp.float32(alphas))), np.float64)
    for i, alpha in enumerate(np.exp(np.float64(np.log(np.float32(alphas))))):
        assert stats.kstest(x[:, i], log_gamma_cdf(alpha)).pvalue > 1e-6


def assert_mean(samples, want, tolerance=0.03):
    """Mean within `tolerance` of `want`, with a standard error 3 times smaller: 3e-3 per number.

    At most a few numbers come near that: small alphas, where the gradient is an exponential.
    """
    samples = np.asarray(samples, np.float64)
    mean, error = samples.mean(0), samples.std(0) / np.sqrt(len(samples))
    assert np.all(error < tolerance * np.abs(want) / 3), "too few samples for a verdict"
    np.testing.assert_allclose(mean, want, rtol=tolerance)


def test_loggamma_gradient():
    """d/d log alpha E[log x] = alpha trigamma(alpha) within 3 %, alpha in 1e-6..1e6."""

    @jax.jit
    def gradients(log_alpha):
        many = jnp.broadcast_to(log_alpha, (40_000, *log_alpha.shape))
        return jax.grad(lambda a: jnp.sum(nvib.random.loggamma(KEY, a)))(many)

    grads = gradients(jnp.log(ALPHAS))
    want = ALPHAS * special.polygamma(1, ALPHAS.astype(np.float64))
    assert_mean(grads, want)


def test_naive_gradient_would_fail():
    """Power: jax's own sampler misses the same bound below alpha = 0.02."""

    @jax.jit
    def gradients(log_alpha):
        many = jnp.broadcast_to(log_alpha, (10_000,))
        return jax.grad(lambda a: jnp.sum(jax.random.loggamma(KEY, jnp.exp(a))))(many)

    want = 1e-3 * special.polygamma(1, 1e-3)
    assert np.mean(gradients(jnp.log(jnp.float32(1e-3)))) < 0.2 * want


SHARES = np.float32([1.0, 2.0])


def dirichlet_jacobian(moment, alphas, count):
    """Pathwise d moment(log pi)_0 / d log alpha_j, shape (count, len(alphas), 2)."""

    @jax.jit
    def run(log_alpha):
        many = jnp.broadcast_to(log_alpha, (count, *log_alpha.shape))
        return jax.grad(lambda a: jnp.sum(moment(nvib.random.log_dirichlet(KEY, a))[..., 0]))(many)

    return run(jnp.log(alphas[:, None] * SHARES))


def test_log_dirichlet_gradient_of_log_moment():
    """d E[log pi_0] / d log alpha_j = alpha_j (trigamma(alpha_0) [j = 0] - trigamma(total))."""
    alphas = np.float32([1e-6, 1e-2, 1.0, 1e4])
    grads = dirichlet_jacobian(lambda x: x, alphas, 60_000)
    a = alphas.astype(np.float64)[:, None] * SHARES
    want = -a * special.polygamma(1, a.sum(-1, keepdims=True))
    want[:, 0] += a[:, 0] * special.polygamma(1, a[:, 0])
    assert_mean(grads, want)


def test_log_dirichlet_gradient_of_mean():
    """d E[pi_0] / d log alpha_j = p_0 ([j = 0] - p_j), through the softmax."""
    alphas = np.float32([1.0, 10.0, 1000.0])
    grads = dirichlet_jacobian(jnp.exp, alphas, 24_000)
    p = SHARES.astype(np.float64) / SHARES.sum()
    want = p[0] * (np.eye(2)[0] - p)
    assert_mean(grads, np.broadcast_to(want, grads.shape[1:]))


def test_log_dirichlet_marginals():
    """pi_i ~ Beta(alpha_i, rest), masked entries taking no part (KS, false alarm 3e-6)."""
    log_alpha = jnp.log(jnp.float32([0.3, 2.0, 5.0, 7.0]))
    mask = jnp.array([True, True, False, True])
    many = jnp.broadcast_to(log_alpha, (20_000, 4))
    log_pi = nvib.random.log_dirichlet(KEY, many, jnp.broadcast_to(mask, many.shape))
    pi = np.exp(np.asarray(log_pi, np.float64))
    assert np.all(pi[:, 2] == 0)
    for i, alpha in ((0, 0.3), (1, 2.0), (3, 7.0)):
        assert stats.kstest(pi[:, i], stats.beta(alpha, 9.3 - alpha).cdf).pvalue > 1e-6
        assert stats.kstest(pi[:, i], stats.beta(alpha, 14.3 - alpha).cdf).pvalue < 1e-6


EDGES = {
    "zero": [0.0, -jnp.inf, 1.0],
    "all zero": [-jnp.inf] * 3,
    "huge": [300.0, 299.0, -300.0],
    "tiny": [-300.0, -301.0, -80.0],
    "mixed": [300.0, -jnp.inf, -300.0],
}


@jax.jit
def edge_case(log_alpha, mask):
    """log pi, and the gradient of something that reads both pi and log pi."""

    def read(a):
        x = nvib.random.log_dirichlet(KEY, a, mask)
        weights = jnp.float32([0.3, -0.2, 0.9])
        return jnp.sum(jnp.exp(x) * weights) + jnp.sum(jnp.where(jnp.isneginf(x), 0.0, x))

    return nvib.random.log_dirichlet(KEY, log_alpha, mask), jax.grad(read)(log_alpha)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("masked", ["none", "first", "all"])
def test_no_nan_at_the_edges(edge, masked):
    log_alpha = jnp.float32([EDGES[edge]])
    mask = {"none": [1, 1, 1], "first": [0, 1, 1], "all": [0, 0, 0]}[masked]
    mask = jnp.array([mask], bool)
    log_pi, grads = edge_case(log_alpha, mask)
    empty = ~mask | jnp.isneginf(log_alpha)
    np.testing.assert_array_equal(jnp.isneginf(log_pi), empty)
    if not bool(jnp.all(empty)):
        np.testing.assert_allclose(jnp.sum(jnp.exp(log_pi)), 1.0, rtol=1e-5)
    assert np.isfinite(grads).all()
    assert np.all(np.asarray(grads)[np.asarray(empty)] == 0)


def test_loggamma_at_the_edges():
    log_alpha = jnp.float32([-jnp.inf, -300.0, 300.0])
    x = nvib.random.loggamma(KEY, log_alpha)
    assert jnp.isneginf(x[0])
    assert np.isfinite(x[1:]).all()
    np.testing.assert_allclose(x[2], 300.0, rtol=1e-6)
    grads = jax.grad(lambda a: jnp.sum(nvib.random.loggamma(KEY, a)[1:]))(log_alpha)
    np.testing.assert_allclose(grads, [0.0, 0.0, 1.0], atol=1e-6)


def test_all_tiny_alphas_still_beat_masked_entries():
    """Drawn log weights of -1e35 are normalised among themselves, not against a mask value."""
    log_alpha = jnp.full((1, 4), -79.0)
    mask = jnp.array([[True, True, False, True]])
    log_pi = nvib.random.log_dirichlet(KEY, log_alpha, mask)
    np.testing.assert_allclose(jnp.max(log_pi), 0.0, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_inputs_are_drawn_in_float32(dtype):
    assert nvib.random.loggamma(KEY, jnp.zeros((2,), dtype)).dtype == jnp.float32
    assert nvib.random.log_dirichlet(KEY, jnp.zeros((2,), dtype)).dtype == jnp.float32


def test_errors():
    with pytest.raises(ValueError, match="mask has dtype float32; wanted bool, True = valid"):
        nvib.random.log_dirichlet(KEY, jnp.zeros((2, 3)), jnp.ones((2, 3)))
    with pytest.raises(
        ValueError, match=r"mask has shape \(3,\); wanted that of log_alpha, \(2, 3\)"
    ):
        nvib.random.log_dirichlet(KEY, jnp.zeros((2, 3)), jnp.ones((3,), bool))
