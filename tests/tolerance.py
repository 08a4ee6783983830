"""The one place where numbers are called close.

An implementation may err at most twice as much as the plain XLA formulation does against float64.
Where there is no plain formulation (recorded arrays, closed forms), the bound is relative to the
largest entry and stands in the test's name or docstring.
"""

import jax
import jax.numpy as jnp
import numpy as np

FACTOR = 2.0
FLOAT32_ROUNDINGS = 8 * float(np.finfo(np.float32).eps)


def error(got, want) -> float:
    """Largest error, relative to the largest entry of `want`."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    assert np.isfinite(got).all(), "not finite"
    return float(np.max(np.abs(got - want)) / max(np.max(np.abs(want)), 1e-30))


def assert_close(got, want, bound: float = 1e-5) -> None:
    assert error(got, want) <= bound


def assert_trees_close(got, want, bound: float = 1e-5) -> None:
    jax.tree.map(lambda a, b: assert_close(a, b, bound), got, want)


def assert_as_good_as(got, plain, truth) -> None:
    """`got` errs at most FACTOR times what `plain` errs, and float32's last bits are free."""
    assert error(got, truth) <= max(FACTOR * error(plain, truth), FLOAT32_ROUNDINGS)


def assert_trees_as_good_as(got, plain, truth) -> None:
    """`assert_as_good_as` leaf by leaf, float32's last bits being those of the largest leaf.

    A gradient that is small because its terms cancel has their rounding, not its own: a bias's is
    the sum of ds, whose terms are of the size of the other gradients.
    """
    leaves = [
        [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)] for tree in (got, plain, truth)
    ]
    floor = FLOAT32_ROUNDINGS * max(np.max(np.abs(x)) for x in leaves[2])
    for x, y, z in zip(*leaves, strict=True):
        assert np.isfinite(x).all(), "not finite"
        assert np.max(np.abs(x - z)) <= max(FACTOR * np.max(np.abs(y - z)), floor)


def plain_attention(query, mixture, *, key_kernel, value_kernel, form):
    """softmax(qq kk + bias) vv of every form: whole tensors, one dtype; bias, softmax float32."""
    dtype, root = query.dtype, float(query.shape[-1]) ** 0.5
    f32 = jnp.float64 if dtype == jnp.float64 else jnp.float32
    mean = mixture.mean.astype(f32)
    s2 = jnp.zeros_like(mean)
    if mixture.log_variance is not None:
        s2 = jnp.exp(mixture.log_variance.astype(f32))
    bias = mixture.log_weights.astype(f32)
    if form == "expected_logit":
        bias, s2 = bias - jnp.sum(s2, -1) / (2 * root), jnp.zeros_like(mean)
    t = s2 + root
    bias = bias - 0.5 * jnp.sum(mean**2 / t, -1)
    if form in ("exact", "published"):
        bias = bias - 0.5 * jnp.sum(jnp.log(t), -1)
    bias = jnp.where(mixture.mask, bias, -1e30)
    keys = jnp.einsum("bsd,dhe->bshe", (mean / t).astype(dtype), key_kernel)
    values = jnp.einsum("bsd,dhe->bshe", (root * mean / t).astype(dtype), value_kernel)
    u = jnp.einsum("bthe,dhe->bthd", query, key_kernel)
    logits = jnp.einsum("bthe,bshe->bhts", query, keys).astype(f32)
    if form == "exact":
        square = jnp.einsum("bthd,bsd->bhts", u * u, (-0.5 / t).astype(dtype))
        logits = logits + square.astype(f32)
    weights = jax.nn.softmax(logits + bias[:, None, None], -1).astype(dtype)
    out = jnp.einsum("bhts,bshe->bthe", weights, values)
    if form in ("exact", "published") and mixture.log_variance is not None:
        kept = jnp.einsum("bhts,bsd->bthd", weights, (s2 / t).astype(dtype))
        out = out + jnp.einsum("bthd,dhe->bthe", kept * u, value_kernel)
    return out
