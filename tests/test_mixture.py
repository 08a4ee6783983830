"""A draw, the mean, a prior draw, an interpolation."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import kernels, mixture, posterior, prior, query
from scipy import special
from tolerance import assert_close

import nvib_jax as nvib
from nvib_jax import objective
from nvib_jax.mixture import DRAWS, READS

KEY = jax.random.key(3)
attention = jax.jit(nvib.denoising_attention, static_argnames="form")


@pytest.mark.parametrize("num_samples", [1, 3])
def test_sample_has_the_two_stage_moments(num_samples):
    """Dir(alpha/K, K times) is Dir(alpha) over components, each split by Dir(alpha_i/K, K times).

    8,000 draws, means within 5 standard errors: false alarm 1e-5 over about 20 numbers.
    """
    post = posterior(batch=1, tokens=2)
    keys = jax.random.split(KEY, 8_000)
    draws = jax.jit(jax.vmap(lambda k: nvib.sample(k, post, num_samples=num_samples)))(keys)
    pi = np.exp(np.asarray(draws.log_weights, np.float64))[:, 0].reshape(-1, num_samples, 3)
    z = np.asarray(draws.mean, np.float64)[:, 0].reshape(-1, num_samples, 3, 8)
    alpha = np.exp(np.asarray(post.log_alpha, np.float64))[0]
    total = alpha.sum()

    def check(samples, want):
        stderr = samples.std(0) / np.sqrt(len(samples))
        assert np.all(np.abs(samples.mean(0) - want) <= 5 * stderr + 1e-9)

    component = pi.sum(1)
    share = alpha / total
    check(component, share)
    check(component**2, share * (alpha + 1) / (total + 1))
    # E[sum_k pi_ik^2]: how a component's weight is split over its draws.
    split = (alpha / num_samples + 1) / (alpha + 1)
    check((pi**2).sum(1), share * (alpha + 1) / (total + 1) * split)
    mean, variance = np.asarray(post.mean[0]), np.exp(np.asarray(post.log_variance[0]))
    check(z[:, 0], mean)
    check((z[:, -1] - mean) ** 2, variance)
    if num_samples > 1:  # independent draws
        check((z[:, 0] - mean) * (z[:, 1] - mean), 0.0)


def test_sample_shapes_and_dtypes():
    post = posterior()
    draw = nvib.sample(KEY, post, num_samples=2)
    assert draw.mean.shape == (3, 12, 8)
    assert draw.log_variance is None
    np.testing.assert_array_equal(draw.mask, jnp.tile(post.mask, (1, 2)))
    assert np.all(jnp.isneginf(draw.log_weights) == ~draw.mask)
    low = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.bfloat16), post)
    draw = nvib.sample(KEY, low)
    assert draw.mean.dtype == draw.log_weights.dtype == jnp.float32
    assert nvib.expected(low, threshold=0.1).log_weights.dtype == jnp.float32


def test_expected_weights():
    post = posterior(zeros=True)
    alpha = np.where(post.mask, np.exp(np.asarray(post.log_alpha, np.float64)), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mean = np.log(alpha / alpha.sum(-1, keepdims=True))
        psi = special.psi(alpha) - special.psi(alpha.sum(-1, keepdims=True))
    got = nvib.expected(post)
    np.testing.assert_allclose(got.log_weights, log_mean, rtol=1e-5, atol=1e-6)
    got = nvib.expected(post, log_weights="geometric").log_weights
    present = alpha > 0
    np.testing.assert_allclose(got[present], psi[present], rtol=1e-5, atol=1e-5)
    assert np.all(jnp.isneginf(got[~present]))


@pytest.mark.parametrize("log_weights", ["mean", "geometric"])
@pytest.mark.parametrize("log_alpha", [-300.0, -50.0, 300.0])
def test_expected_and_its_gradient_at_extreme_counts(log_weights, log_alpha):
    post = posterior(zeros=True)
    where = jnp.zeros((3, 6), bool).at[:, 1].set(True)

    def loss(a):
        p = nvib.Posterior(post.mean, post.log_variance, a, post.mask)
        mix = nvib.expected(p, log_weights=log_weights)
        return jnp.sum(jnp.where(where, jnp.maximum(mix.log_weights, -1e30), 0.0))

    value, grad = jax.jit(jax.value_and_grad(loss))(post.log_alpha.at[:, 1].set(log_alpha))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("log_weights", ["mean", "geometric"])
def test_threshold_never_empties_a_row(log_weights):
    post = posterior(zeros=True)
    for threshold in (-1.0, 0.0, 0.1, 1e3, jnp.float32(jnp.inf)):
        got = nvib.expected(post, log_weights=log_weights, threshold=threshold)
        kept = ~np.isneginf(np.asarray(got.log_weights))
        assert kept.any(-1).all()
        alpha = np.where(post.mask, np.exp(post.log_alpha), 0.0)
        want = alpha > threshold
        want |= (alpha == alpha.max(-1, keepdims=True)) & post.mask
        np.testing.assert_array_equal(kept, want & (alpha > 0))
    # What is left is renormalised; thresholds may be traced and vmapped.
    got = nvib.expected(post, threshold=0.5)
    assert_close(jnp.sum(jnp.exp(got.log_weights), -1), jnp.ones(3))
    many = jax.vmap(lambda t: nvib.expected(post, threshold=t).log_weights)(jnp.float32([0.1, 0.5]))
    np.testing.assert_array_equal(many[1], got.log_weights)
    # Without the rule, a threshold above every count leaves nothing.
    assert not (np.exp(post.log_alpha) > 1e3).any()


def test_one_threshold_a_row():
    """Also where there are as many rows as components: it is never read along the components."""
    post = posterior(batch=6)
    assert post.mask.shape == (6, 6)
    limits = np.float32([0.0, 0.3, 1.0, 2.0, 4.0, 9.0])
    got = np.asarray(nvib.expected(post, threshold=jnp.asarray(limits)).log_weights)
    for row, limit in enumerate(limits):
        want = nvib.expected(post, threshold=float(limit)).log_weights[row]
        np.testing.assert_array_equal(got[row], want)
    across = nvib.Posterior(*(jnp.swapaxes(a, 0, 1) for a in jax.tree.leaves(post)))
    assert not np.array_equal(got.T, nvib.expected(across, threshold=limits).log_weights)  # power


@pytest.mark.parametrize("form", READS)
def test_read(form):
    """Every form with its weights; a threshold drops the same components under all of them."""
    post, threshold, num_samples = posterior(), 0.5, 3
    mix, attended = nvib.read(post, form, threshold=threshold, key=KEY, num_samples=num_samples)
    kept = nvib.expected(post, threshold=threshold).present
    assert 0 < kept.sum() < post.mask.sum()
    copies = {"drawn": num_samples, "average": DRAWS * num_samples}.get(form, 1)
    np.testing.assert_array_equal(mix.present, jnp.tile(kept, (1, copies)))
    out = attention(query(), mix, **kernels(), form=attended)
    assert np.isfinite(out).all()
    if copies == 1:
        weights = "geometric" if form == "expected_logit" else "mean"
        want = nvib.expected(post, log_weights=weights, threshold=threshold)
        chex.assert_trees_all_equal(mix, want)
        assert attended == form
    else:
        assert attended == "exact"
        assert mix.log_variance is None
        weights = jnp.sum(jnp.exp(mix.log_weights), -1)
        np.testing.assert_allclose(weights, copies / num_samples, rtol=1e-5)  # each draw's are 1


def test_read_without_a_threshold_is_the_draw_itself():
    post = posterior()
    chex.assert_trees_all_equal(nvib.read(post, "drawn", key=KEY)[0], nvib.sample(KEY, post))
    average = nvib.read(post, "average", key=KEY)[0]
    first = nvib.sample(jax.random.split(KEY, DRAWS)[0], post)
    np.testing.assert_array_equal(average.mean[:, :6], first.mean)
    for form in ("drawn", "average"):
        with pytest.raises(ValueError, match=f"form is '{form}' and key is None; a draw needs a"):
            nvib.read(post, form)
    with pytest.raises(ValueError, match="form is 'mean'; wanted one of 'exact', 'published'"):
        nvib.read(post, "mean")


@pytest.mark.parametrize("field", ["mean", "log_variance", "log_alpha"])
def test_what_is_no_number_stays_none(field):
    """NaN in a component that is there is NaN in all that is made of its row, and nowhere else."""
    post, base = posterior(), prior()
    value = getattr(post, field)
    bad = dataclasses.replace(post, **{field: value.at[1, 2].set(jnp.nan)})

    def rows(post):
        found = {f"read {f}": read_rows(post, f) for f in READS}
        for form in ("expected_count", "exact"):
            found[f"gaussian {form}"] = nvib.kl_gaussian(post, base, form=form)
            found[f"dirichlet {form}"] = nvib.kl_dirichlet(post, base, form=form)
        draw = nvib.sample(KEY, post)
        found["ratio"] = objective.log_density_ratio(draw, post, base)
        found["count"] = nvib.vector_count(post)
        return found

    def read_rows(post, form):
        mix, attended = nvib.read(post, form, key=KEY, threshold=0.1)
        return jnp.sum(attention(query(), mix, **kernels(), form=attended), axis=(1, 2, 3))

    found, clean = rows(bad), rows(post)
    blind = {
        "mean": {"dirichlet expected_count", "dirichlet exact", "count"},
        "log_variance": {"dirichlet expected_count", "dirichlet exact", "count"},
        "log_alpha": {"gaussian exact"},
    }[field]
    for name, value in found.items():
        assert np.isnan(value[1]) == (name not in blind), name
        np.testing.assert_array_equal(value[jnp.array([0, 2])], clean[name][jnp.array([0, 2])])


def test_sample_prior():
    """Lengths per row, weights drawn (not uniform) from Dir(p / S), z ~ N(mean, variance)."""
    base, lengths = prior(2), jnp.array([0, 3, 5])
    draw = jax.jit(jax.vmap(lambda k: nvib.sample_prior(k, base, lengths, max_length=5)))(
        jax.random.split(KEY, 8_000)
    )
    np.testing.assert_array_equal(draw.mask[0], np.arange(6)[None] <= np.array([[0], [3], [5]]))
    pi = np.exp(np.asarray(draw.log_weights, np.float64))
    np.testing.assert_allclose(pi.sum(-1), 1.0, rtol=1e-5)
    for row, n in ((1, 3), (2, 5)):
        total, atoms = 1.5 + 0.3 * n, n + 1
        second = pi[:, row, : n + 1] ** 2
        want = (total / atoms + 1) / (total + 1) / atoms
        stderr = second.std(0) / np.sqrt(len(second))
        assert np.all(np.abs(second.mean(0) - want) < 5 * stderr)
        assert want > 1.5 / atoms**2  # uniform weights would have 1 / atoms^2
    z = np.asarray(draw.mean, np.float64)[:, 2]
    np.testing.assert_allclose(z.mean((0, 1)), base.mean, atol=0.03)
    np.testing.assert_allclose(z.var((0, 1)), np.exp(base.log_variance), rtol=0.04)


def test_interpolation_has_gradients_at_its_ends():
    """Weight 0 is weight -inf in logs: its gradient is 0, not NaN, and the rest is untouched."""
    a, b, q, k = mixture(), mixture(seed=7), query(), kernels()

    def loss(t, a, b):
        return jnp.sum(attention(q, nvib.interpolate(a, b, t), **k) ** 2)

    def floats(tree):
        return {"mean": tree.mean, "weights": tree.log_weights}

    step = 1e-2
    by_t = jax.grad(loss)(jnp.float32(0.5), a, b)
    slope = (loss(0.5 + step, a, b) - loss(0.5 - step, a, b)) / (2 * step)
    np.testing.assert_allclose(by_t, slope, rtol=0.01)
    for t, mine, other in ((0.0, 0, 1), (1.0, 1, 0)):
        by_t, *sides = jax.grad(loss, argnums=(0, 1, 2), allow_int=True)(jnp.float32(t), a, b)
        assert np.isfinite(by_t)
        chex.assert_tree_all_finite([floats(side) for side in sides])
        assert all(np.any(x != 0) for x in floats(sides[mine]).values())
        assert not any(np.any(x != 0) for x in floats(sides[other]).values())


@pytest.mark.parametrize("impulses", [(True, True), (False, True), (True, False), (False, False)])
def test_interpolation_beyond_its_ends_is_no_number(impulses):
    a = mixture(impulses=impulses[0])
    for t in (-0.5, 1.5, jnp.nan):
        assert jnp.isnan(nvib.interpolate(a, a, t).log_weights).any()


@pytest.mark.parametrize("impulses", [(True, True), (False, True), (True, False), (False, False)])
def test_interpolation_ends_are_the_mixtures_themselves(impulses):
    a = mixture(impulses=impulses[0])
    b = mixture(tokens=3, impulses=impulses[1], seed=9)
    q, k = query(), kernels()
    for t, end in ((0.0, a), (1.0, b)):
        assert_close(attention(q, nvib.interpolate(a, b, t), **k), attention(q, end, **k))
    ts = jnp.float32([0.0, 0.4, 1.0])
    rows = nvib.interpolate(a, b, ts)
    assert_close(jnp.sum(jnp.exp(rows.log_weights), -1), jnp.ones(3))
    assert_close(jnp.sum(jnp.exp(rows.log_weights[:, :6]), -1), 1 - ts)
    one = jax.vmap(lambda t: nvib.interpolate(a, b, t).log_weights)(ts)
    np.testing.assert_array_equal(one[1][1], rows.log_weights[1])


def test_errors():
    post, a = posterior(), mixture()
    with pytest.raises(ValueError, match="num_samples is 0; wanted at least 1"):
        nvib.sample(KEY, post, num_samples=0)
    with pytest.raises(
        ValueError, match="log_weights is 'mode'; wanted one of 'mean', 'geometric'"
    ):
        nvib.expected(post, log_weights="mode")
    with pytest.raises(ValueError, match="max_length is -1; wanted at least 0"):
        nvib.sample_prior(KEY, prior(), jnp.array([1]), max_length=-1)
    with pytest.raises(ValueError, match=r"lengths has shape \(\); wanted \[B\]$"):
        nvib.sample_prior(KEY, prior(), jnp.int32(1), max_length=2)
    with pytest.raises(ValueError, match=r"b.mean has shape \(2, 6, 8\); wanted .* = \(3, Sb, 8\)"):
        nvib.interpolate(a, mixture(batch=2), 0.5)
    with pytest.raises(ValueError, match=r"t has shape \(2,\); wanted \[B\] = \(3,\)"):
        nvib.interpolate(a, a, jnp.zeros(2))
    floats = nvib.Mixture(a.mean, None, a.log_weights, a.mask.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"mixture.mask has dtype float32; wanted bool"):
        nvib.interpolate(a, floats, 0.5)
