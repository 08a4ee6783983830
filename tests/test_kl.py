"""The two KLs and their gradients against mpmath, and at the edges."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from examples import normal, posterior, prior, statistics

import nvib_jax as nvib
from nvib_jax import objective
from nvib_jax.kl import _expected_use, vector_count

mp.mp.dps = 35
FORMS = ("expected_count", "exact")


def kl_dirichlet_of(log_alpha, log_p, form, num_samples):
    """[S], [] -> []: one row, no conditional prior."""
    post = nvib.Posterior(
        jnp.zeros((1, len(log_alpha), 1)), jnp.zeros((1, len(log_alpha), 1)), log_alpha[None],
        jnp.ones((1, len(log_alpha)), bool),
    )  # fmt: skip
    standard = nvib.Prior(jnp.zeros(1), jnp.zeros(1), log_p, jnp.float32(0.0), trainable=True)
    return nvib.kl_dirichlet(post, standard, form=form, num_samples=num_samples)[0]


def evaluate(log_alpha, log_p, form, num_samples=1):
    """Values, gradients by log_alpha and by log_p, over a leading axis of cases."""
    run = jax.value_and_grad(lambda a, p: kl_dirichlet_of(a, p, form, num_samples), argnums=(0, 1))
    values, grads = jax.jit(jax.vmap(run))(jnp.float32(log_alpha), jnp.float32(log_p))
    return [np.asarray(x, np.float64) for x in (values, *grads)]


def textbook(log_alpha, log_p, num_samples, form):
    """The published KL as it stands, its gradients by log_alpha and by log p, in mpmath."""
    alpha = [mp.e ** mp.mpf(float(x)) if np.isfinite(x) else mp.mpf(0) for x in log_alpha]
    k0, p = num_samples * len(alpha), mp.e ** mp.mpf(float(log_p))
    a0 = sum(alpha)
    if form == "expected_count":
        a, times, share = [a0 / k0], k0, [x / a0 for x in alpha]
    else:
        a, times = [x / num_samples for x in alpha if x], num_samples
        share, k0 = None, num_samples * len(a)  # what is empty is in neither density
    n, b = times * len(a), p / k0
    b0 = n * b
    psi0, trigamma0 = mp.psi(0, a0), mp.psi(1, a0)
    value = mp.loggamma(a0) - mp.loggamma(b0) + n * mp.loggamma(b)
    value += sum(times * (-mp.loggamma(x) + (x - b) * (mp.psi(0, x) - psi0)) for x in a)
    by_a = [times * x * ((x - b) * mp.psi(1, x) - (a0 - b0) * trigamma0) for x in a]
    if share is not None:
        by_a = [by_a[0] * s for s in share]
    else:
        rest = iter(by_a)
        by_a = [next(rest) if x else mp.mpf(0) for x in alpha]
    by_b = b0 * (mp.psi(0, b) - mp.psi(0, b0) + psi0) - b * times * sum(mp.psi(0, x) for x in a)
    return value, by_a, by_b


def worst(got, log_alpha, log_p, num_samples, form):
    """Largest error over all cases in units of the documented bound: value, gradient, by prior."""
    out = np.zeros(3)
    atoms = num_samples * log_alpha.shape[-1]
    for value, by_a, by_p, row, p in zip(*got, log_alpha, log_p, strict=True):
        want = textbook(row, p, num_samples, form)
        size = max(abs(x) for x in want[1])
        out[0] = max(out[0], abs(value - want[0]) / (1e-5 * abs(want[0]) + 1e-6 * atoms))
        for x, y in zip(by_a, want[1], strict=True):
            out[1] = max(out[1], abs(x - y) / (1e-5 * size + 1e-6 * atoms))
        out[2] = max(out[2], abs(by_p - want[2]) / (1e-5 * abs(want[2]) + 1e-6 * atoms))
    return out


TOTALS = [1e-3, 1e-2, 0.1, 1.0, 7.9, 33.0, 1e3, 1e5, 3e6, 1e8]
PRIORS = [1e-3, 0.1, 1.0, 31.0, 1e3, 1e5, 1e8]


@pytest.mark.parametrize("atoms", [2, 5, 64, 4096])
def test_expected_count_against_mpmath(atoms):
    """Value and gradients within 1e-5 relative + 1e-6 nats per atom, q and p in 1e-3..1e8."""
    # One component holds all the count, so that log q is a float32 number exactly; with K = 2 and
    # a zero beside it, k0 = 2 S' atoms.
    log_q, log_p = np.float32(np.log(list(itertools.product(TOTALS, PRIORS)))).T
    log_alpha = np.stack([log_q, np.full_like(log_q, -np.inf)], -1)
    num_samples = atoms // 2 if atoms % 2 == 0 else 1
    if atoms % 2:
        log_alpha = np.pad(log_alpha, ((0, 0), (0, atoms - 2)), constant_values=-np.inf)
    got = evaluate(log_alpha, log_p, "expected_count", num_samples)
    assert np.all(worst(got, log_alpha, log_p, num_samples, "expected_count") <= 1.0)


@pytest.mark.parametrize(("components", "num_samples"), [(2, 1), (2, 3), (7, 2), (64, 1), (100, 4)])
def test_exact_against_mpmath(components, num_samples):
    """The same bound; components equal, nearly equal and far apart, a few with no count at all."""
    rng = np.random.default_rng(components)
    grid = list(
        itertools.product([1e-3, 1.0, 33.0, 1e5, 1e8], [1e-3, 1.0, 31.0, 1e8], [0, 1e-3, 3])
    )
    rows = [np.log(q / components) + s * rng.normal(size=components) for q, _, s in grid]
    log_alpha = np.float32(rows)
    if components > 5:
        log_alpha[:, [2, 4]] = -np.inf
    log_p = np.float32([np.log(p) for _, p, _ in grid])
    got = evaluate(log_alpha, log_p, "exact", num_samples)
    assert np.all(worst(got, log_alpha, log_p, num_samples, "exact") <= 1.0)
    assert np.all(got[1][~np.isfinite(log_alpha)] == 0)


def test_textbook_formula_in_float32_would_fail():
    """Power: the same grid point, the formula as it stands, in float32."""
    q, p, k0 = (jnp.float32(x) for x in (1e8, 31.0, 64.0))
    gammaln, digamma = jax.scipy.special.gammaln, jax.scipy.special.digamma
    naive = gammaln(q) - gammaln(p) + (q - p) * (digamma(q / k0) - digamma(q))
    naive = naive + k0 * (gammaln(p / k0) - gammaln(q / k0))
    want = textbook(np.log(np.float32([1e8 / 64] * 64)), np.log(31.0), 1, "exact")[0]
    assert abs(float(naive) - want) > 0.1 * want


@pytest.mark.parametrize("form", FORMS)
def test_kl_dirichlet_is_zero_at_the_prior(form):
    """All alpha_i = p/k0: 0 nats at any size, within 1e-6 per atom."""
    log_p = np.float32(np.log([1e-3, 1.0, 1e8, np.exp(80.0)]))
    values, by_alpha, _ = evaluate(np.repeat(log_p[:, None] - np.log(8), 8, axis=1), log_p, form)
    assert np.all(np.abs(values) <= 8e-6)
    assert np.all(np.isfinite(by_alpha))


@functools.partial(jax.jit, static_argnames="form")
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def both_kls(log_alpha, log_p, form):
    """Summed, with their gradients."""
    post, base = posterior(), prior()
    changed = nvib.Posterior(post.mean, post.log_variance, log_alpha, post.mask)
    other = dataclasses.replace(base, log_alpha=log_p, trainable=True)
    kls = [f(changed, other, form=form) for f in (nvib.kl_gaussian, nvib.kl_dirichlet)]
    return jnp.sum(sum(kls))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("log_alpha", [-300.0, -80.0, 88.0, 300.0])
@pytest.mark.parametrize("log_p", [0.0, 300.0])
def test_kls_stay_finite(form, log_alpha, log_p):
    """exp(log_alpha) would overflow or vanish: values and gradients stay finite."""
    a = posterior().log_alpha
    a = a.at[0, 1].set(log_alpha).at[0, 2].set(-jnp.inf).at[1, :].set(log_alpha)
    value, grads = both_kls(a, jnp.float32(log_p), form=form)
    assert np.isfinite(value)
    assert np.isfinite(grads[0]).all()
    assert np.isfinite(grads[1])


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("near", [False, True])
def test_kl_gaussian_against_float64(form, num_samples, near):
    """Within 1e-5 relative, also when posterior and prior nearly coincide."""
    post, base = posterior(zeros=True), prior()
    if near:
        post = nvib.Posterior(
            base.mean[None, None] + 1e-3 * post.mean,
            base.log_variance[None, None] + 1e-3 * post.log_variance,
            post.log_alpha, post.mask,
        )  # fmt: skip
    got = nvib.kl_gaussian(post, base, num_samples=num_samples, form=form)
    mean, lv, la, pm, pv = (
        np.asarray(x, np.float64)
        for x in (post.mean, post.log_variance, post.log_alpha, base.mean, base.log_variance)
    )
    mask = np.asarray(post.mask)
    each = 0.5 * (np.exp(lv - pv) + (mean - pm) ** 2 / np.exp(pv) - 1 - (lv - pv)).sum(-1)
    alpha = np.where(mask, np.exp(la), 0.0)
    if form == "exact":
        want = num_samples * (each * (alpha > 0)).sum(-1)
    else:
        share = alpha / alpha.sum(-1, keepdims=True)
        want = num_samples * mask.sum(-1) * (share * each).sum(-1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_expected_count_and_exact_differ_where_they_should():
    """The published form sees the total only: it cannot tell a skewed row from a flat one."""
    rows = np.stack([np.zeros(8), np.log([7.3] + [0.1] * 7)])
    log_p = np.full(2, np.log(8.0))
    published = evaluate(rows, log_p, "expected_count")[0]
    exact = evaluate(rows, log_p, "exact")[0]
    np.testing.assert_allclose(published, 0.0, atol=1e-5)
    assert exact[0] < 1e-5
    assert exact[1] > 10


def test_conditional_prior_total():
    """alpha_0^p + alpha_delta n, n the real tokens, with a right gradient at alpha_delta = 0."""
    base = nvib.Prior.standard(2, alpha=2.0, alpha_delta=0.25)
    np.testing.assert_allclose(jnp.exp(base.log_total(jnp.array([0, 4]))), [2.0, 3.0], rtol=1e-6)

    def total(alpha_delta, log_alpha):
        changed = nvib.Prior(base.mean, base.log_variance, log_alpha, alpha_delta)
        return changed.log_total(jnp.int32(4))

    slope = jax.grad(total)(jnp.float32(0.0), jnp.log(jnp.float32(2.0)))
    np.testing.assert_allclose(slope, 2.0, rtol=1e-6)
    for log_alpha in (300.0, -300.0):
        value, slope = jax.value_and_grad(total)(jnp.float32(0.0), jnp.float32(log_alpha))
        assert value == log_alpha
        assert np.isfinite(slope)


@pytest.mark.parametrize("log_alpha", [-300.0, -100.0, -81.0, -45.0, -39.0, 0.0, 50.0, 300.0])
@pytest.mark.parametrize("delta", [0.0, 1e-30, 1e-6, 0.3, 1.0])
def test_conditional_prior_total_against_float64(log_alpha, delta):
    base = dataclasses.replace(nvib.Prior.standard(2), log_alpha=jnp.float32(log_alpha))
    base = dataclasses.replace(base, alpha_delta=jnp.float32(delta))
    n = np.array([0, 1, 7, 10_000])
    with np.errstate(divide="ignore"):
        added = np.log(np.float64(np.float32(delta)) * n)
    got = base.log_total(jnp.asarray(n))
    np.testing.assert_allclose(got, np.logaddexp(log_alpha, added), rtol=2e-6, atol=1e-6)
    slopes = jax.vmap(jax.grad(lambda a, n: dataclasses.replace(base, log_alpha=a).log_total(n)),
                      in_axes=(None, 0))(jnp.float32(log_alpha), jnp.asarray(n))  # fmt: skip
    want = 1 / (1 + np.exp(np.minimum(added - log_alpha, 700)))
    np.testing.assert_allclose(slopes, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_one_atom_has_nothing_to_lose(form):
    """Its weight is 1 under both Dirichlets: 0 nats and gradient 0 at any size, not 5e-4."""
    log_alpha = np.linspace(-80, 80, 161)
    for log_p in (-7.0, 0.0, 3.3, 18.0, 80.0):
        values, by_alpha, by_p = evaluate(log_alpha[:, None], np.full(161, log_p), form)
        assert not values.any()
        assert not by_alpha.any()
        assert not by_p.any()
    alone, base = jnp.ones((1, 0, 2)), nvib.Prior.standard(2, alpha=3.7)
    post = nvib.make_posterior(alone, alone, alone[..., 0], jnp.ones((1, 0), bool), base)
    assert not nvib.kl_dirichlet(post, base, form=form).any()
    draw = nvib.sample(jax.random.key(0), post)
    assert not objective.log_density_ratio(draw, post, base).any()
    nan = dataclasses.replace(post, log_alpha=post.log_alpha * jnp.nan)
    assert np.isnan(nvib.kl_dirichlet(nan, base, form=form)).all()


@pytest.mark.parametrize("trainable", [False, True])
def test_a_prior_is_a_constant_unless_it_is_to_be_trained(trainable):
    """One rule for all that takes a prior: gradients by all four arrays, or by none."""
    mean, log_variance, log_alpha, mask = statistics()

    def losses(base):
        post = nvib.make_posterior(mean, log_variance, log_alpha, mask, base)
        draw = nvib.sample(jax.random.key(0), post)
        drawn = nvib.sample_prior(jax.random.key(1), base, jnp.array([1, 3]), max_length=3)
        found = [f(posterior(), base) for f in (nvib.kl_gaussian, nvib.kl_dirichlet)]
        found += [post.mean, post.log_variance, post.log_alpha, drawn.mean]
        found += [objective.log_density_ratio(draw, post, base), jnp.exp(drawn.log_weights)]
        return [jnp.sum(jnp.sin(x)) for x in found]

    base = dataclasses.replace(prior(), trainable=trainable)
    slopes = jax.tree.map(np.asarray, jax.jacrev(losses)(base))
    reached = [[bool(np.any(g)) for g in jax.tree.leaves(slope)] for slope in slopes]
    assert all(any(r) == trainable for r in reached)
    assert [any(column) for column in zip(*reached, strict=True)] == [trainable] * 4


def test_padding_of_any_kind_leaves_the_kls_alone():
    post, base = posterior(), prior()
    clean = (post.mean, post.log_variance, post.log_alpha)
    garbage = (
        jnp.where(post.mask[..., None], post.mean, jnp.nan),
        jnp.where(post.mask[..., None], post.log_variance, jnp.inf),
        jnp.where(post.mask, post.log_alpha, 300.0),
    )
    for kl, form in itertools.product((nvib.kl_gaussian, nvib.kl_dirichlet), FORMS):

        def total(arrays, kl=kl, form=form):
            return jnp.sum(kl(nvib.Posterior(*arrays, post.mask), base, form=form))

        run = jax.jit(jax.value_and_grad(total))
        (value, grads), (want, wanted) = run(garbage), run(clean)
        np.testing.assert_allclose(value, want, rtol=1e-6)
        for got, expected in zip(grads, wanted, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("kl", [nvib.kl_gaussian, nvib.kl_dirichlet])
def test_errors(kl):
    post, base = posterior(), prior()
    with pytest.raises(ValueError, match="form is 'nope'; wanted one of 'expected_count', 'exact'"):
        kl(post, base, form="nope")
    with pytest.raises(ValueError, match="num_samples is 0; wanted at least 1"):
        kl(post, base, num_samples=0)
    with pytest.raises(ValueError, match=r"prior.mean has shape \(5,\); wanted \[D\] = \(8,\)"):
        kl(post, prior(5))
    wrong = nvib.Posterior(post.mean, post.log_variance, post.log_alpha[:, :2], post.mask)
    with pytest.raises(
        ValueError, match=r"posterior.log_alpha has shape \(3, 2\); wanted \[B, S\] = \(3, 6\)"
    ):
        kl(wrong, base)
    floats = nvib.Posterior(
        post.mean, post.log_variance, post.log_alpha, post.mask.astype(jnp.float32)
    )
    with pytest.raises(ValueError, match=r"posterior.mask has dtype float32; wanted bool"):
        kl(floats, base)


def test_special_functions_and_their_derivatives():
    """Within 1e-6 absolute or relative of mpmath over 1e-30..1e30."""
    from nvib_jax.numerics import special

    x = np.float32(np.log(10.0 ** np.linspace(-30, 30, 241)))
    exact = [mp.e ** mp.mpf(float(v)) for v in x]

    def rho(v):
        return mp.loggamma(v) - ((v - 0.5) * mp.log(v) - v + mp.log(2 * mp.pi) / 2)

    table = {
        "stirling_error": rho,
        "scaled_digamma_error": lambda v: v * (mp.psi(0, v) - mp.log(v)),
        "scaled_trigamma_error": lambda v: v * (v * mp.psi(1, v) - 1),
        "digamma_of_exp": lambda v: mp.psi(0, v),
    }
    slopes = {
        "stirling_error": lambda v: v * (mp.psi(0, v) - mp.log(v)) + 0.5,
        "scaled_digamma_error": lambda v: v * (mp.psi(0, v) - mp.log(v) + v * mp.psi(1, v) - 1),
        "digamma_of_exp": lambda v: v * mp.psi(1, v),
    }
    with mp.workdps(80):  # the textbook expressions cancel 60 digits at 1e30
        for name, truth in table.items():
            f = getattr(special, name)
            got = jax.jit(f)(x)
            np.testing.assert_allclose(got, [float(truth(v)) for v in exact], rtol=2e-6, atol=1e-6)
            if name in slopes:
                slope = jax.jit(jax.vmap(jax.grad(f)))(x)
                want = [float(slopes[name](v)) for v in exact]
                np.testing.assert_allclose(slope, want, rtol=2e-6, atol=1e-6)


def test_relative_entropy_is_blind_to_a_common_rounding():
    """KL(s || s e^c / Z): adding 1e-6 to every c moves it by less than 1e-11."""
    from nvib_jax.numerics.special import relative_entropy

    log_share = jnp.full((1, 64), -jnp.log(jnp.float32(64.0)))
    change = normal(0, 1, 64, scale=1e-3)
    times = jnp.ones((1, 64))
    c = np.asarray(change, np.float64)
    want = np.log(np.mean(np.exp(c))) - np.mean(c)
    for shift in (0.0, 1e-6):
        np.testing.assert_allclose(
            relative_entropy(log_share, change + shift, times), [want], rtol=1e-4
        )


def five_vectors():
    """The last is empty."""
    rng, alpha = np.random.default_rng(3), np.array([[0.001, 0.3, 2.0, 40.0, 0.0]])
    mean = jnp.asarray(rng.normal(size=(1, 5, 3)), jnp.float32)
    with np.errstate(divide="ignore"):
        log_alpha = jnp.asarray(np.log(alpha), jnp.float32)
    base = nvib.Prior.standard(3, alpha_delta=0.5)
    return nvib.make_posterior(mean, mean, log_alpha, jnp.ones((1, 5), bool), base), alpha[0]


def test_the_number_of_vectors_and_its_gradient():
    posterior, alpha = five_vectors()
    value, slope = jax.value_and_grad(lambda p: vector_count(p)[0], allow_int=True)(posterior)
    assert value == 4
    np.testing.assert_array_equal(slope.mean, 0)

    def smooth(log_alpha):  # the prior's alpha is 1, the total held, five tokens and the prior
        return np.sum(1 - (1 + 6 / (alpha.sum() + 1)) ** -np.exp(log_alpha))

    at, step = np.log(alpha[:4]), 1e-5
    want = [(smooth(at + step * e) - smooth(at - step * e)) / (2 * step) for e in np.eye(4)]
    np.testing.assert_allclose(slope.log_alpha[0, 1:5], want, rtol=1e-4)
    assert slope.log_alpha[0, 0] == slope.log_alpha[0, 5] == 0


def test_the_probability_of_being_drawn():
    """Counts of Poisson(k0) draws of a Dirichlet's weights; 5 errors: false alarms below 1e-5."""
    posterior, alpha = five_vectors()
    rng, total = np.random.default_rng(0), alpha.sum() + 1
    rates = rng.gamma(alpha[:4], size=(100_000, 4)) * 6 / total
    seen = (rng.poisson(rates) > 0).mean(axis=0)
    present = jnp.arange(6)[None] < 5
    log_alpha = jnp.where(present, posterior.log_alpha, 0.0)
    used = np.asarray(_expected_use(log_alpha, jnp.float32([6.0]), present))[0, 1:5]
    assert (np.abs(seen - used) < 5 * (used * (1 - used) / 1e5) ** 0.5 + 1e-9).all()


def test_vectors_beyond_the_range_of_float32():
    """Pseudo-counts of e^100 have a finite gradient: 5 draws over 4 vectors."""
    base, mean = nvib.Prior.standard(2), jnp.ones((1, 4, 2))
    mask = jnp.ones((1, 4), bool)
    huge = nvib.make_posterior(mean, mean, jnp.full((1, 4), 100.0), mask, base)
    used = _expected_use(huge.log_alpha, jnp.float32([5.0]), huge.mask)
    np.testing.assert_allclose(used[0, 1:], 1 - np.exp(-5 / 4), rtol=1e-5)
    slope = jax.grad(lambda p: vector_count(p)[0], allow_int=True)(huge)
    assert np.isfinite(slope.log_alpha).all()
