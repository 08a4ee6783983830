"""Small random posteriors, mixtures and kernels for the tests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import nvib_jax as nvib


def normal(seed: int, *shape: int, scale: float = 1.0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, dtype)


def prior(dim: int = 8, **kwargs) -> nvib.Prior:
    plain = nvib.Prior.standard(dim, **{"alpha": 1.5, "alpha_delta": 0.3, **kwargs})
    return nvib.Prior(
        normal(90, dim, scale=0.3), normal(91, dim, scale=0.3), plain.log_alpha, plain.alpha_delta
    )


def statistics(batch: int = 3, tokens: int = 5, dim: int = 8, seed: int = 0):
    """mean, log_variance, log_alpha, mask; the lengths differ, one row may be all padding."""
    mask = jnp.arange(tokens)[None] < jnp.asarray([tokens - i for i in range(batch)])[:, None]
    return (
        normal(seed, batch, tokens, dim),
        normal(seed + 1, batch, tokens, dim),
        normal(seed + 2, batch, tokens, scale=2.0),
        mask,
    )


def posterior(batch: int = 3, tokens: int = 5, dim: int = 8, *, zeros: bool = False, seed: int = 0):
    mean, log_variance, log_alpha, mask = statistics(batch, tokens, dim, seed)
    if zeros:
        log_alpha = log_alpha.at[0, 1].set(-jnp.inf)
    return nvib.make_posterior(mean, log_variance, log_alpha, mask, prior(dim))


def mixture(
    batch: int = 3, tokens: int = 5, dim: int = 8, *, impulses: bool = False, seed: int = 0
):
    """A mixture that every form of attention may read: of no kind of weights."""
    post = posterior(batch, tokens, dim, seed=seed)
    if impulses:
        return nvib.sample(jax.random.key(seed), post)
    return dataclasses.replace(nvib.expected(post), weights_kind=None)


def kernels(dim: int = 8, heads: int = 2, seed: int = 50):
    shape = (dim, heads, dim // heads)
    scale = dim**-0.5
    return {
        "key_kernel": normal(seed, *shape, scale=scale),
        "value_kernel": normal(seed + 1, *shape, scale=scale),
    }


def query(batch: int = 3, length: int = 4, dim: int = 8, heads: int = 2, seed: int = 60):
    return normal(seed, batch, length, heads, dim // heads, scale=2.0)


def as_float64(tree):
    """In an `enable_x64` context: the same numbers, in float64."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
