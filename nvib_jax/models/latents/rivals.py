"""The rivals of the NVIB: latent vectors without a Dirichlet, which differ in how they are chosen.

    T     plain autoencoder: every vector, no noise (`certain.py`)
    VTV   a Gaussian per vector
    VTP   one vector: the mean, the maximum or the first of the states
    VTS   a fixed share of the vectors, evenly spaced
    VTQ   k vectors, pooled by k learned queries; k = 1 is the latent attention of text VAEs
    AAE   one vector as VTP's, no noise: a discriminator holds it to the prior (`certain.py`)
    VQ    a share as VTS's, each vector the nearest one of a codebook (`vq.py`)

The published rivals (Henderson & Fehr, 2023) attend to their vectors as Transformers do, without a
norm in the logits and without the prior's component. That equals denoising attention to

    F = sum_i pi_i delta(z_i)    with    log pi_i = |z_i|^2 / (2 sqrt(E)),    pi_0 = 0

so they use the NVAE's decoder, cache and kernels unchanged. Their KL is the exact form of the
NVAE's, a sum over the present vectors.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax import mixture as mixtures
from nvib_jax.attention import Memory, attend
from nvib_jax.attention.inputs import MASK_VALUE
from nvib_jax.kl import kl_gaussian
from nvib_jax.mixture import DRAWS, check_read
from nvib_jax.modules.linear import Linear
from nvib_jax.modules.nvib import log_variance_map, mean_map, restored, stored
from nvib_jax.objective import gaussian_log_density_ratio
from nvib_jax.posterior import make_posterior
from nvib_jax.types import Mixture, Posterior, Prior

Vectors = tuple[jax.Array, jax.Array, jax.Array]


class VectorLatent(nnx.Module):
    """The base class of the rivals; each subclass defines its vectors and their noise.

    The methods do what the methods of the same names do in `DirichletLatent`.

    Args:
      config: an `NVAEConfig`.
      rngs: parameter RNGs.
    """

    variational: bool  # whether the latent has a density, so that there is a bound on log p(x)
    pools = False  # whether its vectors are others than the tokens', as many for every sentence

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.config, self.num_samples = config, config.num_samples
        self.mean = mean_map(config.dim, rngs=rngs)
        self.prior_values = stored(Prior.standard(config.dim))

    def vectors(self, x: jax.Array, mask: jax.Array) -> Vectors:
        """States (B, N, D) -> (M vectors (B, M, D), which are valid, which are attended to)."""
        raise NotImplementedError

    def spread(self, x: jax.Array) -> jax.Array:
        """Vectors (B, M, D) -> their log variances."""
        raise NotImplementedError

    def draws(self, posterior: Posterior, key: jax.Array, count: int) -> Mixture:
        """`count` draws of each vector."""
        raise NotImplementedError

    def still(self, posterior: Posterior) -> jax.Array:
        """The vectors without noise, (B, S, D)."""
        raise NotImplementedError

    def costs(self, posterior: Posterior, **_: Any) -> dict[str, jax.Array]:
        """KL_G in nats, (B,), and a Dirichlet KL of 0, because there are no pseudo-counts."""
        raise NotImplementedError

    def sample_prior(self, key: jax.Array, counts: jax.Array, *, most: int) -> Mixture:
        """Draws of the prior with these numbers of vectors (B,), each at most `most`."""
        raise NotImplementedError

    def interpolate(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """From a (t = 0) to b (t = 1)."""
        raise NotImplementedError

    # ---- methods that all subclasses share

    @property
    def prior(self) -> Prior:
        """The prior of the vectors, with no gradient."""
        return restored(self.prior_values)

    def __call__(self, x: jax.Array, mask: jax.Array) -> Posterior:
        """Encoder states (B, N, D) to posterior; vectors not attended to have no pseudo-count."""
        x, mask, kept = self.vectors(x.astype(jnp.float32), mask)
        log_alpha = jnp.where(kept, 0.0, -jnp.inf)
        return make_posterior(self.mean(x), self.spread(x), log_alpha, mask, self.prior)

    def draw(self, posterior: Posterior, key: jax.Array) -> Mixture:
        """K draws of each vector."""
        return self.draws(posterior, key, self.num_samples)

    def read(
        self, posterior: Posterior, form: str, key: jax.Array | None = None
    ) -> tuple[Mixture, str]:
        """Draws for the forms "drawn" and "average"; for every other form the means."""
        if key is not None and form in ("drawn", "average"):
            return self.draws(posterior, key, 1 if form == "drawn" else DRAWS), "exact"
        check_read(form, key)
        return self.attended(self.still(posterior), attended_to(posterior), posterior.mask), "exact"

    def gaussians(self, key: jax.Array, counts: jax.Array, most: int) -> Mixture:
        """Vectors drawn from N(0, 1), so many a row (B,), each at most `most`."""
        drawn = mixtures.sample_prior(key, self.prior, counts, max_length=most)
        return self.attended(drawn.mean, drawn.mask.at[:, 0].set(False), drawn.mask)

    def attended(self, z: jax.Array, kept: jax.Array, mask: jax.Array) -> Mixture:
        """Impulses whose weights cancel the norms in the logits, which leaves plain attention."""
        root = (self.config.dim / self.config.latent_heads) ** 0.5
        norm = jnp.sum(jnp.square(z), axis=-1) / (2 * root)
        return Mixture(z, None, jnp.where(kept, norm, -jnp.inf), mask)

    def between(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """`(1 - t) z_a + t z_b` for each vector; a and b must have the same number of vectors."""
        t = jnp.broadcast_to(t, a.mean.shape[:1])[:, None, None]
        z = (1 - t) * a.mean + t * b.mean
        return self.attended(z, ~jnp.isneginf(a.log_weights), a.mask)


class NoisyLatent(VectorLatent):
    """A Gaussian for each vector; subclasses choose the vectors."""

    variational = True

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.log_variance = log_variance_map(config.dim, config.initial_variance, rngs=rngs)

    def spread(self, x: jax.Array) -> jax.Array:
        """A linear map of the vectors."""
        return self.log_variance(x)

    def still(self, posterior: Posterior) -> jax.Array:
        """The means of the Gaussians."""
        return posterior.mean

    def draws(self, posterior: Posterior, key: jax.Array, count: int) -> Mixture:
        """`count` draws of each vector, side by side."""
        mean, log_variance = (
            jnp.tile(a, (1, count, 1)) for a in (posterior.mean, posterior.log_variance)
        )
        kept, mask = (jnp.tile(a, (1, count)) for a in (attended_to(posterior), posterior.mask))
        z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, jnp.float32)
        return self.attended(z, kept, mask)

    def costs(self, posterior: Posterior, **_: Any) -> dict[str, jax.Array]:
        """The Gaussians' exact KL."""
        kl = kl_gaussian(posterior, self.prior, num_samples=self.num_samples, form="exact")
        return {"gaussian": kl, "dirichlet": jnp.zeros_like(kl)}

    def log_density_ratio(self, mixture: Mixture, posterior: Posterior) -> jax.Array:
        """`log p(z) - log q(z | x)` of a mixture that `draw` made, nats, (B,)."""
        return gaussian_log_density_ratio(mixture, posterior, self.prior)

    def sample_prior(self, key: jax.Array, counts: jax.Array, *, most: int) -> Mixture:
        """Draws of the prior with these numbers of vectors (B,), each at most `most`."""
        return self.gaussians(key, counts, most)


class GaussianLatent(NoisyLatent):
    """VTV: a Gaussian per vector, all kept."""

    def vectors(self, x: jax.Array, mask: jax.Array) -> Vectors:
        """All states."""
        return x, mask, mask

    def interpolate(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """The vectors of both, attended to in the proportion (1 - t) : t."""
        return mixtures.interpolate(a, b, t)


class StridedLatent(NoisyLatent):
    """VTS: a share `stride_share` of a sentence's vectors, evenly spaced and at least one."""

    def vectors(self, x: jax.Array, mask: jax.Array) -> Vectors:
        """All states; which of them are attended to depends on the sentence's length alone."""
        return x, mask, strided(mask, self.config.stride_share)

    def interpolate(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """The vectors of both, attended to in the proportion (1 - t) : t."""
        return mixtures.interpolate(a, b, t)


class PooledLatent(NoisyLatent):
    """VTP: one vector, the `pool` of the states."""

    pools = True

    def vectors(self, x: jax.Array, mask: jax.Array) -> Vectors:
        """One vector, (B, 1, D)."""
        return pooled(x, mask, self.config.pool)

    def interpolate(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """The points on the straight line between the two vectors."""
        return self.between(a, b, t)


class QueriesLatent(NoisyLatent):
    """VTQ: `latent_queries` learned queries attend to the states."""

    pools = True

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        init, shape = nnx.initializers.normal(1.0, jnp.float32), (config.latent_queries, config.dim)
        self.queries = nnx.Param(init(rngs.params(), shape))
        self.key_value = Linear(config.dim, 2 * config.dim, rngs=rngs)

    def vectors(self, x: jax.Array, mask: jax.Array) -> Vectors:
        """k vectors, (B, k, D)."""
        heads, some = self.config.heads, jnp.any(mask, axis=-1, keepdims=True)
        key, value = (
            jnp.swapaxes(a.reshape(*a.shape[:2], heads, -1), 1, 2)
            for a in jnp.split(self.key_value(x), 2, axis=-1)
        )
        seen = mask.at[:, 0].set(True)  # because the softmax over no state would be NaN
        query = self.queries[...].reshape(1, -1, heads, x.shape[-1] // heads)
        query = jnp.broadcast_to(query, (x.shape[0], *query.shape[1:])) * query.shape[-1] ** -0.5
        out = attend(query, Memory(key, value, jnp.where(seen, 0.0, MASK_VALUE)))
        vectors = out.reshape(x.shape[0], -1, x.shape[-1])
        there = jnp.broadcast_to(some, vectors.shape[:2])
        return vectors, there, there

    def interpolate(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """The points on the straight line between each vector of a and the same one of b."""
        return self.between(a, b, t)


def strided(mask: jax.Array, share: float) -> jax.Array:
    """A share of each row's tokens (B, N), evenly spaced and at least one: bool (B, N)."""
    n = jnp.sum(mask, axis=-1, keepdims=True)
    count = jnp.round(share * n.astype(jnp.float32)).astype(n.dtype)
    count = jnp.clip(count, 1, jnp.maximum(n, 1))
    place = jnp.arange(mask.shape[1], dtype=n.dtype)[None]
    steps = (place + 1) * count // jnp.maximum(n, 1) - place * count // jnp.maximum(n, 1)
    return mask & (steps > 0)


def pooled(x: jax.Array, mask: jax.Array, pool: str) -> Vectors:
    """One vector (B, 1, D) of the states (B, N, D): their mean or maximum, or the first."""
    real, some = mask[..., None], jnp.any(mask, axis=-1, keepdims=True)
    if pool == "first":
        one = x[:, 0]
    elif pool == "max":
        one = jnp.where(some, jnp.max(x, axis=1, where=real, initial=-jnp.inf), 0.0)
    else:
        count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(x.dtype)
        one = jnp.sum(jnp.where(real, x, 0.0), axis=1) / count
    return one[:, None], some, some


def attended_to(posterior: Posterior) -> jax.Array:
    """Which vectors are attended to: all that are present except the prior's."""
    return posterior.present.at[:, 0].set(False)
