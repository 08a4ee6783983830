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


@pytest.fixture(scope="module")
def drawn():
    """200,000 draws of each of ALPHAS' logarithms in float32."""
    many = jnp.broadcast_to(np.log(ALPHAS), (200_000, len(ALPHAS)))
    return np.asarray(jax.jit(nvib.random.loggamma)(KEY, many), np.float64)


def test_loggamma_goodness_of_fit(drawn):
    """Kolmogorov-Smirnov, 200,000 draws each of 13 alphas; false alarm 13e-6."""
    for i, alpha in enumerate(ALPHAS.astype(np.float64)):
        # The cdf at the alpha that the float32 logarithm really names.
        named = np.exp(np.float64(np.log(ALPHAS)[i]))
        assert stats.kstest(drawn[:, i], log_gamma_cdf(named)).pvalue > 1e-6, alpha
        if alpha < 1e3:  # power, of a tenth of them: a shape 10 % off, a spread 10 % off
            wrong = 1.1 * named if alpha <= 10 else named + 0.1 * np.sqrt(named)
            assert stats.kstest(drawn[::10, i], log_gamma_cdf(wrong)).pvalue < 1e-6, alpha


def test_loggamma_moments(drawn):
    """E[log x] = psi(alpha), Var[log x] = psi'(alpha) within 5 standard errors: 26 times 6e-7."""
    x, alpha = drawn, np.exp(np.float64(np.log(ALPHAS)))
    mean, variance = special.digamma(alpha), special.polygamma(1, alpha)
    square = (x - mean) ** 2
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / len(x)) + 1e-7 * np.abs(mean))
    assert np.all(np.abs(square.mean(0) - variance) < 5 * square.std(0) / np.sqrt(len(x)))


UNIFORMS = np.array([2.0**-24, 0.02, 0.3, 0.5, 0.9, 1 - 2.0**-24])
UNIFORMS = np.stack([g.ravel() for g in np.meshgrid(UNIFORMS, UNIFORMS, UNIFORMS)])


def exact_sample(log_alpha):
    """In float64: log x, the quantile of Gamma(alpha + 2) at U_2, and the two boosts."""
    alpha, u = np.exp(log_alpha), UNIFORMS
    x = special.gammainccinv(alpha + 2, 1 - u[2])
    x = np.where(u[2] < 0.5, special.gammaincinv(alpha + 2, u[2]), x)
    return np.log(x) + np.log(u[0]) / alpha + np.log(u[1]) / (alpha + 1)


@jax.jit
def sample_and_slope(log_alpha):
    uniforms = jnp.float32(UNIFORMS)
    log_alpha = jnp.broadcast_to(log_alpha, uniforms[0].shape)
    one = jnp.ones_like(log_alpha)
    return jax.jvp(lambda a: nvib.random._loggamma(a, uniforms), (log_alpha,), (one,))


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 0.1, 1.0, 3.0, 30.0, 1e3])
def test_every_sample_and_its_gradient(alpha):
    """Value and slope at given uniforms, their smallest and largest too, against float64."""
    log_alpha = np.log(np.float32(alpha))
    value, slope = np.asarray(sample_and_slope(log_alpha), np.float64)
    centre, h = np.float64(log_alpha), 1e-4
    want = exact_sample(centre)
    spread = np.sqrt(special.polygamma(1, alpha + 2))  # what the error of the map scales with
    assert np.all(np.abs(value - want) < 1e-4 * spread + 1e-6 * (1 + np.abs(want)))
    want = (exact_sample(centre + h) - exact_sample(centre - h)) / (2 * h)
    np.testing.assert_allclose(slope, want, rtol=1e-5, atol=3e-4 * spread)


def test_samples_are_smooth_in_log_alpha():
    """No seam from alpha = 1e-8 to 1e13: the slopes, integrated, are the differences."""
    uniforms = jnp.broadcast_to(jnp.float32([0.3, 0.6, 0.8])[:, None], (3, 2401))
    grid = jnp.linspace(-18.0, 30.0, 2401)
    value, slope = jax.jvp(
        lambda a: nvib.random._loggamma(a, uniforms), (grid,), (jnp.ones_like(grid),)
    )
    value, slope, grid = (np.asarray(v, np.float64) for v in (value, slope, grid))
    steps = 0.5 * (slope[1:] + slope[:-1]) * np.diff(grid)
    tolerance = 1e-4 * np.abs(steps) + 1e-6 * (1 + np.abs(value[1:]))
    assert np.all(np.abs(np.diff(value) - steps) < tolerance)


def test_samples_are_finite_whatever_is_drawn():
    """Extreme uniforms at extreme log_alpha: values, first and second derivatives."""
    ends = jnp.float32([2.0**-24, 1 - 2.0**-24])
    drawn = jnp.stack(jnp.meshgrid(ends, ends, ends), -1).reshape(8, 1, 3)
    log_alpha = jnp.float32([-79.0, -40.0, 0.0, 39.0, 89.0, 300.0])

    def sample(a, uniforms):
        return nvib.random._loggamma(a, uniforms)

    for f in (sample, jax.grad(sample), jax.grad(jax.grad(sample))):
        every = jnp.vectorize(f, signature="(),(n)->()")
        assert np.isfinite(jax.jit(every)(log_alpha[None], drawn)).all()


def implicit_gradient_std(alpha):
    """Standard deviation of d log x / d log alpha, x the quantile of Gamma(alpha) at a normal."""
    normal, h = np.linspace(-7, 7, 4001), 1e-4

    def quantile(a):
        below, above = special.ndtr(normal), special.ndtr(-normal)
        x = np.where(normal < 0, special.gammaincinv(a, below), special.gammainccinv(a, above))
        return np.log(x)

    slope = (quantile(alpha * np.exp(h)) - quantile(alpha * np.exp(-h))) / (2 * h)
    weight = np.exp(-0.5 * normal**2) / np.sum(np.exp(-0.5 * normal**2))
    return np.sqrt(weight @ (slope - weight @ slope) ** 2)


def test_gradient_is_hardly_noisier_than_the_implicit_one():
    """At most 1.12 times its standard deviation; measured to 1 % (200,000 draws), 4 sigma away."""
    alphas = np.float64([0.3, 1.0, 2.4, 10.0, 100.0])

    @jax.jit
    def gradients(log_alpha):
        many = jnp.broadcast_to(log_alpha, (200_000, *log_alpha.shape))
        return jax.grad(lambda a: jnp.sum(nvib.random.loggamma(KEY, a)))(many)

    got = np.std(np.asarray(gradients(jnp.float32(np.log(alphas))), np.float64), axis=0)
    ratio = got / [implicit_gradient_std(a) for a in alphas]
    assert np.all(ratio < 1.12 * 1.02), ratio
    assert np.all(ratio > 0.98), ratio  # power: a lost boost would be quieter, and wrong


def test_derivatives_agree_under_transforms():
    """Reverse, forward, vmap and jit give one derivative; jax's own sampler is not traced."""
    log_alpha = jnp.float32([-9.0, -1.0, 0.5, 3.0, 8.0])
    one = jnp.ones_like(log_alpha)
    draw_one = nvib.random.loggamma
    reverse = jax.grad(lambda a: jnp.sum(draw_one(KEY, a)))(log_alpha)
    value, forward = jax.jit(lambda a: jax.jvp(lambda b: draw_one(KEY, b), (a,), (one,)))(log_alpha)
    np.testing.assert_allclose(reverse, forward, rtol=1e-5)
    keys = jax.random.split(KEY, 3)
    each = jnp.stack([draw_one(k, log_alpha) for k in keys])
    np.testing.assert_allclose(jax.vmap(draw_one, (0, None))(keys, log_alpha), each, rtol=1e-5)
    np.testing.assert_allclose(draw_one(KEY, log_alpha), value, rtol=1e-5)
    assert "random_gamma" not in str(jax.make_jaxpr(draw_one)(KEY, log_alpha))


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
        return jnp.sum(jnp.exp(x) * weights[None]) + jnp.sum(jnp.where(jnp.isneginf(x), 0.0, x))

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
