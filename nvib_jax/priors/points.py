"""Posteriors as sets of points with mean 0 and variance 1, in the few directions that differ.

A vector's point has the coordinates [mu_i, log alpha_i]. Their principal directions over the
training texts are taken in the order of their variance, until they hold nearly all of it; in a
trained bottleneck many dimensions carry nothing, so that these are far fewer than D. Each direction
is divided by its standard deviation. What is left out (the other directions and the variances)
is replaced by its mean over the training texts.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.posterior import make_posterior
from nvib_jax.types import Posterior, Prior


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PointMap:
    """The map between posteriors and points.

    Attributes:
      center: mean of [mu, log alpha], shape (D + 1,).
      basis: principal directions, orthonormal columns, shape (D + 1, R).
      scale: standard deviation along each, shape (R,).
      log_variance: mean of the posteriors' log variances, shape (D,).
    """

    center: jax.Array
    basis: jax.Array
    scale: jax.Array
    log_variance: jax.Array

    @classmethod
    def of(cls, vectors: np.ndarray, log_variance: np.ndarray, share: float) -> "PointMap":
        """The map of vectors [mu, log alpha], (M, D + 1), and their log variances (M, D).

        Raises:
          ValueError: fewer than two vectors, or all of them are the same.
        """
        if len(vectors) < 2:
            raise ValueError(f"there are {len(vectors)} vectors; wanted at least 2")
        vectors = vectors.astype(np.float64)
        values, basis = np.linalg.eigh(np.cov(vectors.T))
        values, basis = values[::-1], basis[:, ::-1]
        if values[0] < 1e-12:
            raise ValueError("all vectors are the same; wanted texts whose vectors differ")
        rank = int(np.searchsorted(np.cumsum(values), share * values.sum())) + 1
        # Rounding leaves tiny variances, or negative ones, where there are none.
        rank = min(rank, int(np.sum(values > 1e-9 * values[0])))
        arrays = (vectors.mean(0), basis[:, :rank], np.sqrt(values[:rank]), log_variance.mean(0))
        return cls(*(jnp.asarray(a, jnp.float32) for a in arrays))

    def coordinates(self, vectors: jax.Array | np.ndarray) -> jax.Array:
        """The points of vectors [mu, log alpha], (..., D + 1) -> (..., R)."""
        flat = jnp.asarray(vectors, jnp.float32).reshape(-1, vectors.shape[-1])
        found = (flat - self.center[None]) @ self.basis / self.scale[None]
        return found.reshape(*vectors.shape[:-1], -1)

    def points(self, posterior: Posterior) -> tuple[jax.Array, jax.Array]:
        """(points (B, S - 1, R), which are valid (B, S - 1)): the present vectors, listed first."""
        there = posterior.present[:, 1:]
        points = self.coordinates(features(posterior))
        order = jnp.argsort(~there, axis=-1, stable=True)
        points = jnp.take_along_axis(points, order[..., None], axis=1)
        there = jnp.take_along_axis(there, order, axis=1)
        return jnp.where(there[..., None], points, 0.0), there

    def posterior(self, points: jax.Array, mask: jax.Array, prior: Prior) -> Posterior:
        """The posterior of points (B, S, R), of which the mask (B, S) are valid; the inverse of
        `points`, but for what was left out."""
        x = self.center[None, None] + (points * self.scale[None, None]) @ self.basis.T
        spread = jnp.broadcast_to(self.log_variance, x[..., :-1].shape)
        return make_posterior(x[..., :-1], spread, x[..., -1], mask, prior)


def features(posterior: Posterior) -> jax.Array:
    """[mu, log alpha] of each component but the prior's, (B, S - 1, D + 1); zeros where absent."""
    both = jnp.concatenate([posterior.mean, posterior.log_alpha[..., None]], axis=-1)[:, 1:]
    return jnp.where(posterior.present[:, 1:, None], both, 0.0)
