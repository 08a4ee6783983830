"""Encoder statistics to posterior: the maps, the skip, component 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import kernels, normal, posterior, prior, query, statistics

import nvib_jax as nvib


def test_component_zero_is_the_prior_and_is_never_masked():
    mean, log_variance, log_alpha, mask = statistics()
    base = prior()
    post = nvib.make_posterior(mean, log_variance, log_alpha, mask & False, base)
    np.testing.assert_array_equal(post.mean[:, 0], jnp.broadcast_to(base.mean, (3, 8)))
    np.testing.assert_array_equal(
        post.log_variance[:, 0], jnp.broadcast_to(base.log_variance, (3, 8))
    )
    np.testing.assert_array_equal(post.log_alpha[:, 0], jnp.full(3, base.log_alpha))
    np.testing.assert_array_equal(post.mask, jnp.zeros((3, 6), bool).at[:, 0].set(True))
    # Every token masked: the posterior is the prior's atom, nothing is divided by nothing.
    assert np.allclose(nvib.kl_gaussian(post, base), 0, atol=1e-6)
    assert np.allclose(nvib.kl_dirichlet(post, base), 0, atol=1e-6)
    draw = nvib.sample(jax.random.key(0), post)
    np.testing.assert_array_equal(draw.log_weights[:, 0], 0.0)
    out = nvib.denoising_attention(query(), draw, **kernels())
    value = jnp.einsum("bd,dhe->bhe", draw.mean[:, 0], kernels()["value_kernel"])
    np.testing.assert_allclose(out, jnp.broadcast_to(value[:, None], out.shape), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_posterior_is_float32(dtype):
    *arrays, mask = statistics()
    post = nvib.make_posterior(*(a.astype(dtype) for a in arrays), mask, prior())
    assert {x.dtype for x in jax.tree.leaves(post)} == {jnp.dtype("float32"), jnp.dtype(bool)}


def test_padding_reaches_neither_values_nor_gradients():
    """NaN, inf and 1e30 behind the mask: the whole chain equals the clean one, gradients are 0."""
    mean, log_variance, log_alpha, mask = statistics()
    base = prior()

    def loss(mean, log_variance, log_alpha):
        post = nvib.make_posterior(mean, log_variance, log_alpha, mask, base)
        draw = nvib.sample(jax.random.key(0), post)
        out = nvib.denoising_attention(query(), draw, **kernels())
        return jnp.sum(out**2) + jnp.sum(
            nvib.kl_gaussian(post, base) + nvib.kl_dirichlet(post, base, form="exact")
        )

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    want, wanted = run(mean, log_variance, log_alpha)
    for garbage in (jnp.nan, jnp.inf, 1e30):
        got, grads = run(
            jnp.where(mask[..., None], mean, garbage),
            jnp.where(mask[..., None], log_variance, garbage),
            jnp.where(mask, log_alpha, garbage),
        )
        assert float(got) == float(want)
        for a, b in zip(grads, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("num_samples", "form"), [(1, "exact"), (2, "expected_count")])
def test_relu_zeros_have_zero_gradients(num_samples, form):
    """w.x + b < 0 removes the component: -inf, and nothing but 0 flows back from anything."""
    mean, log_variance, _, mask = statistics()
    x, w, base = normal(5, 3, 5, 8), normal(6, 8), prior()
    x = x.at[0, 0].set(0.0)  # w.x + b = 0 exactly: where log has no gradient at all

    def loss(x, w, b, mean):
        log_alpha = nvib.log_pseudo_count(x, w, b, form="relu")
        post = nvib.make_posterior(mean, log_variance, log_alpha, mask, base)
        draw = nvib.sample(jax.random.key(0), post, num_samples=num_samples)
        total = jnp.sum(nvib.denoising_attention(query(), draw, **kernels()) ** 2)
        for weights in ("mean", "geometric"):
            mix = nvib.expected(post, log_weights=weights)
            read = "exact" if weights == "mean" else "expected_logit"
            out = nvib.denoising_attention(query(), mix, **kernels(), form=read)
            total = total + jnp.sum(out**2)
        options = {"num_samples": num_samples, "form": form}
        kls = nvib.kl_gaussian(post, base, **options) + nvib.kl_dirichlet(post, base, **options)
        return total + jnp.sum(kls)

    removed = np.asarray(x @ w <= 0)
    assert removed.any()
    assert not removed.all()
    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    grads = run(x, w, jnp.float32(0.0), mean)
    assert all(np.isfinite(g).all() for g in grads)
    assert np.all(np.asarray(grads[0])[removed] == 0)
    assert np.all(np.asarray(grads[3])[removed] == 0)
    assert np.any(np.asarray(grads[0])[~removed & np.asarray(mask)] != 0)
    # All removed: still finite.
    grads = run(x, w, jnp.float32(-1e3), mean)
    assert all(np.isfinite(g).all() for g in grads)


def test_log_pseudo_count_maps():
    x, w, a, b = normal(0, 2, 3, 8), normal(1, 8), normal(2, 8), jnp.float32(0.3)
    linear = np.asarray(x, np.float64) @ np.asarray(w, np.float64) + 0.3
    np.testing.assert_allclose(nvib.log_pseudo_count(x, w, b), linear, rtol=1e-5)
    quadratic = linear + np.asarray(x * x, np.float64) @ np.asarray(a, np.float64)
    got = nvib.log_pseudo_count(x, w, b, a, form="exp_quadratic")
    np.testing.assert_allclose(got, quadratic, rtol=1e-4)
    got = nvib.log_pseudo_count(x, w, b, form="relu")
    np.testing.assert_allclose(jnp.exp(got), np.maximum(linear, 0), rtol=1e-4)
    assert np.array_equal(jnp.isneginf(got), linear <= 0)
    low = jnp.bfloat16
    assert nvib.log_pseudo_count(x.astype(low), w.astype(low), b.astype(low)).dtype == jnp.float32


@pytest.mark.parametrize("form", ["exp_linear", "exp_quadratic", "relu"])
def test_no_number_is_no_pseudo_count_of_zero(form):
    """NaN in a state is NaN in its pseudo-count, in the loss and in the gradient: guards see it."""
    mean, log_variance, _, mask = statistics()
    quadratic = normal(4, 8) if form == "exp_quadratic" else None

    def loss(w):
        x = normal(5, 3, 5, 8).at[0, 1, 3].set(jnp.nan)
        log_alpha = nvib.log_pseudo_count(x, w, jnp.float32(0.1), quadratic, form=form)
        post = nvib.make_posterior(mean, log_variance, log_alpha, mask, prior())
        return jnp.sum(nvib.kl_dirichlet(post, prior())), log_alpha

    (value, log_alpha), grads = jax.value_and_grad(loss, has_aux=True)(normal(6, 8))
    assert np.isnan(log_alpha[0, 1])
    assert np.isfinite(np.exp(log_alpha)).sum() == log_alpha.size - 1
    assert np.isnan(value)
    assert np.isnan(grads).any()


def test_add_skip_leaves_the_prior_component_out():
    below = posterior(zeros=True)
    log_alpha = normal(3, 3, 5)
    got = nvib.add_skip(log_alpha, below)
    np.testing.assert_array_equal(got, log_alpha + below.log_alpha[:, 1:])
    with pytest.raises(
        ValueError, match=r"previous.log_alpha\[:, 1:\] has shape \(3, 5\); wanted .* = \(3, 4\)"
    ):
        nvib.add_skip(log_alpha[:, :4], below)


def test_errors():
    mean, log_variance, log_alpha, mask = statistics()
    with pytest.raises(ValueError, match="mask has dtype float32; wanted bool, True = valid"):
        nvib.make_posterior(mean, log_variance, log_alpha, mask.astype(jnp.float32), prior())
    with pytest.raises(
        ValueError, match=r"log_variance has shape \(3, 5, 7\); wanted \[B, N, D\] = \(3, 5, 8\)"
    ):
        nvib.make_posterior(mean, log_variance[..., :7], log_alpha, mask, prior())
    with pytest.raises(ValueError, match=r"prior.mean has shape \(7,\); wanted \[D\] = \(8,\)"):
        nvib.make_posterior(mean, log_variance, log_alpha, mask, prior(7))
    x, w, b = normal(0, 3, 8), normal(1, 8), jnp.float32(0)
    with pytest.raises(ValueError, match="form is 'exp'; wanted one of 'exp_linear', 'exp_quad"):
        nvib.log_pseudo_count(x, w, b, form="exp")
    with pytest.raises(ValueError, match="quadratic is given with form='relu'; exp_quadratic al"):
        nvib.log_pseudo_count(x, w, b, w, form="relu")
    with pytest.raises(ValueError, match="quadratic is None with form='exp_quadratic'"):
        nvib.log_pseudo_count(x, w, b, form="exp_quadratic")
    with pytest.raises(ValueError, match=r"linear has shape \(7,\); wanted \[D\] = \(8,\)"):
        nvib.log_pseudo_count(x, w[:7], b)
    with pytest.raises(ValueError, match=r"bias has shape \(1,\); wanted \(\)"):
        nvib.log_pseudo_count(x, w, b[None])
    with pytest.raises(ValueError, match=r"quadratic has shape \(7,\); wanted \[D\] = \(8,\)"):
        nvib.log_pseudo_count(x, w, b, w[:7], form="exp_quadratic")
    for options in ({"dim": 0}, {"dim": 2, "alpha": 0.0}, {"dim": 2, "alpha_delta": -1.0}):
        with pytest.raises(ValueError, match=r"wanted dim >= 1, alpha > 0, alpha_delta >= 0"):
            nvib.Prior.standard(**options)


# ---- the largest pseudo-counts


def counts(*rows, valid=None):
    """A posterior with these pseudo-counts behind the prior's; `valid` tokens of each row."""
    alpha = jnp.array(rows, jnp.float32)
    valid = [alpha.shape[1]] * len(rows) if valid is None else valid
    mask = jnp.arange(alpha.shape[1])[None] < jnp.array(valid)[:, None]
    zeros = jnp.zeros((*alpha.shape, 2))
    return nvib.make_posterior(zeros, zeros, jnp.log(alpha), mask, nvib.Prior.standard(2))


def left(posterior, keep):
    """Which tokens of each row are present after `keep_largest`."""
    found = nvib.keep_largest(posterior, keep)
    assert bool(found.present[:, 0].all())
    np.testing.assert_array_equal(found.mask, posterior.mask)
    return [np.flatnonzero(row).tolist() for row in np.asarray(found.present[:, 1:])]


@pytest.mark.parametrize(
    ("keep", "want"),
    [
        (0.5, [[1, 2], [0]]), (1.0, [[0, 1, 2, 3], [0, 1]]), (0.25, [[1], [0]]), (1, [[1], [0]]),
        (3, [[1, 2, 3], [0, 1]]), (np.int32(9), [[0, 1, 2, 3], [0, 1]]),
        (np.float32(0.75), [[1, 2, 3], [0, 1]]), (np.array([2, 1]), [[1, 2], [0]]),
        (np.array([0.25, 1.0], np.float32), [[1], [0, 1]]),
    ],
)  # fmt: skip
def test_shares_and_numbers_of_the_largest(keep, want):
    """Of the second row's four places two are padding, with the largest numbers of all."""
    posterior = counts([0.2, 3.0, 1.0, 0.5], [0.7, 0.1, 9.0, 9.0], valid=[4, 2])
    assert left(posterior, keep) == want
    if isinstance(keep, np.ndarray | np.generic):
        assert [
            np.flatnonzero(row).tolist()
            for row in np.asarray(jax.jit(nvib.keep_largest)(posterior, keep).present[:, 1:])
        ] == want


def test_a_tenth_of_ten_is_one_and_ties_go_to_the_earlier():
    posterior = counts([1.0] * 10)
    for tenths in range(1, 11):
        assert left(posterior, tenths / 10) == [list(range(tenths))]


def test_what_is_gone_stays_gone_and_what_is_no_number_stays():
    posterior = counts([0.0, 2.0, 0.0, 1.0])
    assert left(posterior, 3) == [[1, 3]]
    bad = counts([float("nan"), 2.0, 1.0, 1.0])
    assert np.isnan(np.asarray(nvib.keep_largest(bad, 1).log_alpha)).any()


@pytest.mark.parametrize(
    ("keep", "match"),
    [
        (0.0, "keep is 0.0; wanted more than 0 and at most 1, a share"), (1.5, "keep is 1.5"),
        (0, "keep is 0; wanted at least 1"), (-2, "keep is -2"), (True, "keep"),
        (float("nan"), "keep is nan"), ("half", "keep is 'half'; wanted a number or an array"),
        (jnp.ones(3), r"keep has shape \(3,\); wanted \(\) or \[B\] = \(1,\)"),
    ],
)  # fmt: skip
def test_no_budget(keep, match):
    with pytest.raises(ValueError, match=match):
        nvib.keep_largest(counts([1.0, 2.0]), keep)
