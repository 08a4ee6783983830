"""The gate against the library's own attention, off the identity; moments in any order."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny  # noqa: F401, keeps what is compiled
from examples import normal
from tolerance import assert_close, assert_trees_close, error

import nvib_jax as nvib
from nvib_jax import reading as readings
from nvib_jax.attention import FORMS, Memory, attend
from nvib_jax.reading import EmpiricalPrior, Reading, Tau

D, H, E = 8, 2, 4
MASK = jnp.arange(5)[None] < jnp.asarray([5, 3])[:, None]


def arrays(dtype=jnp.float64):
    """(x, query, kernels, a prior) with means and variances that differ by dimension."""
    x, query = 1.5 * normal(1, 2, 5, D), normal(2, 2, 3, H, E)
    kernels = {"key_kernel": normal(3, D, H, E), "value_kernel": normal(4, D, H, E)}
    found = readings.moments(normal(5, 3, 7, D) + 0.3, jnp.ones((3, 7), bool), head_dim=E)
    tree = (x, query, kernels, EmpiricalPrior.from_moments(found))
    return jax.tree.map(lambda a: a.astype(dtype), tree)


def by_gate(x, query, kernels, reading, mask=MASK):
    """Attention of head width with a bias for each key, and the gate."""
    x_key, x_value, bias = readings.token_terms(x, reading, head_dim=E)
    key, value = (
        jnp.einsum("bnd,dhe->bhne", a, kernels[name])
        for a, name in ((x_key, "key_kernel"), (x_value, "value_kernel"))
    )
    out, lse = attend(query, Memory(key, value, jnp.where(mask, bias, -1e30)), with_lse=True)
    terms = readings.prior_terms(query, reading, **kernels)
    return readings.gate(out, lse.astype(terms.logit.dtype), terms)


@pytest.mark.parametrize("form", FORMS)
def test_the_gate_is_the_library_s_attention(form):
    """In float64, for means and variances on and off the identity.

    A log-sum-exp is returned in float32, so the two agree to its last digits.
    """
    with jax.enable_x64(True):
        x, query, kernels, empirical = arrays()

        @jax.jit
        def both(alpha, sigma, mean):
            reading = Reading(empirical.prior, Tau(alpha, sigma, mean), form)
            posterior = readings.identity_posterior(x, MASK, reading, head_dim=E)
            mixture = nvib.Mixture(
                posterior.mean, posterior.log_variance, posterior.log_alpha, posterior.mask
            )
            want = nvib.denoising_attention(
                query, mixture, **kernels, form=form, implementation="reference"
            )
            return by_gate(x, query, kernels, reading), want

        for alpha, sigma, mean in itertools.product((0.0, 1.5), (0.0, 0.3, 1.0), (1.0, 0.7, 0.0)):
            got, want = both(alpha, sigma, mean)
            assert_close(got, want, 1e-6)
        assert error(both(0.0, 1.0, 0.7)[0], both(1.5, 0.3, 1.0)[0]) > 0.05


@pytest.mark.parametrize("form", FORMS)
def test_without_the_prior_it_is_the_plain_attention(form):
    """alpha = inf, also where it is traced; and no gradient is NaN."""
    x, query, kernels, empirical = arrays(jnp.float32)
    key, value = (
        jnp.einsum("bnd,dhe->bhne", x, kernels[n]) for n in ("key_kernel", "value_kernel")
    )
    bias = jnp.where(MASK, 0.0, -1e30)
    plain = attend(query, Memory(key / math.sqrt(E), value, bias))

    def off(alpha):
        return by_gate(x, query, kernels, Reading(empirical.prior, Tau(alpha), form))

    assert_close(jax.jit(off)(jnp.float32(jnp.inf)), plain, 1e-6)
    assert error(off(0.0), plain) > 0.01
    slope = jax.jit(jax.grad(lambda a: jnp.sum(jnp.sin(off(a)))))
    assert float(jnp.abs(slope(jnp.float32(1.0)))) > 1e-3
    assert np.isfinite(slope(jnp.float32(80.0)))


def test_golden_values():
    """The values of `test_golden_reading`, of every form, with variances and without."""
    from attention.test_golden_reading import B_V, CASES, CORPUS, W_K, W_Q, W_V, X, Y

    corpus = jnp.asarray(CORPUS, jnp.float32)[None]
    found = readings.moments(corpus, jnp.ones((1, 4), bool), head_dim=2)
    empirical = EmpiricalPrior.from_moments(found)
    np.testing.assert_allclose(empirical.prior.log_alpha, 0.994368911, rtol=1e-6)
    np.testing.assert_allclose(empirical.scale, 0.392184387, rtol=1e-6)
    kernels = {
        name: jnp.asarray(w.reshape(4, 2, 2), jnp.float32)
        for name, w in (("key_kernel", W_K), ("value_kernel", W_V))
    }
    query = jnp.asarray((Y @ W_Q).reshape(1, 2, 2, 2), jnp.float32)
    x = jnp.asarray(X, jnp.float32)[None]
    for name, (form, alpha, sigma, how, want, _) in CASES.items():
        if how:
            continue
        reading = Reading(empirical.prior, Tau.published(alpha, sigma, scale=empirical.scale), form)

        x_key, x_value, bias = readings.token_terms(x, reading, head_dim=2)
        key, value = (
            jnp.einsum("bnd,dhe->bhne", a, kernels[k])
            for a, k in ((x_key, "key_kernel"), (x_value, "value_kernel"))
        )
        out, lse = attend(query, Memory(key, value, bias), with_lse=True)
        out = readings.gate(out, lse, readings.prior_terms(query, reading, **kernels))
        out = out + jnp.asarray(B_V, jnp.float32)[None, None]
        np.testing.assert_allclose(out.reshape(2, 4), want, atol=2e-6, err_msg=name)


def test_moments_merge_in_any_order():
    """Three parts of uneven size, one empty: numpy's in float64 to 1e-5."""
    x = normal(7, 4, 6, D) * jnp.arange(1.0, D + 1)[None, None] + 5.0
    mask = jnp.asarray(np.random.default_rng(0).random((4, 6)) < 0.6)
    parts = [readings.moments(x[i : i + 1], mask[i : i + 1], head_dim=E) for i in range(4)]
    parts.append(readings.moments(x[:1], jnp.zeros((1, 6), bool), head_dim=E))
    rows = np.asarray(x, np.float64)[np.asarray(mask)]
    energy = (rows**2).sum(1) / (2 * math.sqrt(E))
    want = readings.Moments(*map(np.asarray, (
        len(rows), rows.mean(0), rows.var(0), energy.mean(), energy.var()
    )))  # fmt: skip
    for order in ((0, 1, 2, 3, 4), (4, 3, 1, 0, 2)):
        found = parts[order[0]]
        for i in order[1:]:
            found = readings.merge(found, parts[i])
        assert_trees_close(found, want)


def test_a_centred_posterior_reads_the_same():
    """Only differences of log pseudo-counts are seen, and the prior's is what was asked for."""
    x, _, _, empirical = arrays(jnp.float32)
    reading = Reading(empirical.prior, Tau(1.0, 0.3))
    raw = readings.identity_posterior(x, MASK, reading, head_dim=E)
    centred = readings.identity_posterior(x, MASK, reading, head_dim=E, concentration=2.0)
    assert_close(centred.log_alpha[:, 0], jnp.full(2, math.log(2.0)))
    shift = jnp.where(raw.mask, raw.log_alpha - centred.log_alpha, 0.0)
    want = jnp.where(raw.mask, empirical.prior.log_alpha - math.log(2.0), 0.0)
    assert_close(shift, want)
    with pytest.raises(ValueError, match="form is 'sharp'; wanted one of 'exact'"):
        Reading(empirical.prior, Tau(0.0), "sharp")
    with pytest.raises(ValueError, match=r"head_dim is 2\.5; wanted a whole number"):
        readings.moments(x, MASK, head_dim=2.5)
