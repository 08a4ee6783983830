"""The densities of sets of points that a prior may be: a flow, and independent Gaussians.

Both are modules with a loss to be fitted by, a way to draw, and a log-density. It is the density of
*blurred* points, which have noise added: points themselves are as many as there are texts, and a
density of them would be highest at the training texts. Sets are arrays (B, S, R) with a mask
(B, S), the valid points first. Neither density depends on the order of the points in a set.
"""

import math
from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.priors.config import PriorConfig, Sampling
from nvib_jax.priors.flow import Velocity, integrate, log_density, matching_loss
from nvib_jax.priors.network import SetTransformer

Labels = Mapping[str, jax.Array]  # name -> class of each set, int (B,); -1 is not given


class Density(Protocol):
    """What a kind of prior does, called as `Density(config, width, most, labels, rngs=rngs)`."""

    def loss(self, points: jax.Array, mask: jax.Array, key: jax.Array, labels: Labels) -> jax.Array:
        """What fitting minimises, the mean over a batch, shape ()."""
        ...

    def draw(
        self, mask: jax.Array, key: jax.Array, labels: Labels, sampling: Sampling
    ) -> jax.Array:
        """Sets of as many points as the mask (B, S) has, float32 (B, S, R)."""
        ...

    def log_density(
        self, points: jax.Array, mask: jax.Array, key: jax.Array, sampling: Sampling
    ) -> jax.Array:
        """log p of sets of this size as ordered tuples, nats, (B,); `key` is for estimates."""
        ...


class SetFlow(nnx.Module):
    """Flow matching on sets (`nvib_jax.priors.flow`), with classifier-free guidance by labels.

    The flow is followed until what is left of its noise is the blur of the points: at the time t
    with (1 - t) / t = `config.noise`. There x_t / t is a blurred point. A draw ends with the jump
    from there to the mean of the points that it may be a blur of, x_t + (1 - t) v.

    The network tells that mean for every t, and the velocity follows from it,

        v(x, t) = (E[x_1 | x_t] - x_t) / (1 - t)

    because the points lie near few directions and the noise has all of them, so that a small
    network tells the former better (Li & He 2025, arXiv 2511.13720).

    Guidance (Ho & Salimans 2022, arXiv 2207.12598) goes on from the velocity without labels to the
    one with them, and beyond: v + g (v_labels - v), where g is `sampling.guidance`.
    """

    def __init__(
        self,
        config: PriorConfig,
        width: int,
        most: int,
        labels: Mapping[str, int],
        *,
        rngs: nnx.Rngs,
    ):
        sizes = {n: getattr(config, n) for n in ("dim", "heads", "hidden", "layers")}
        self.width, self.label_dropout = width, config.label_dropout
        self.stop = 1.0 / (1.0 + config.noise)
        self.network = SetTransformer(width, most, labels, **sizes, rngs=rngs)

    def loss(self, points: jax.Array, mask: jax.Array, key: jax.Array, labels: Labels) -> jax.Array:
        """The flow-matching loss; all labels of a share of the sets are hidden."""
        key, hide_key = jax.random.split(key)
        hidden = jax.random.bernoulli(hide_key, self.label_dropout, mask.shape[:1])
        labels = {name: jnp.where(hidden, -1, given) for name, given in labels.items()}
        return matching_loss(self.velocity(mask, labels), points, mask, key, stop=self.stop)

    def draw(
        self, mask: jax.Array, key: jax.Array, labels: Labels, sampling: Sampling
    ) -> jax.Array:
        """Noise, carried to blurred points, and these to their means."""
        noise = jax.random.normal(key, (*mask.shape, self.width), jnp.float32)
        velocity = self.velocity(mask, labels)
        if labels and sampling.guidance != 1.0:
            velocity = _guided(velocity, self.velocity(mask, {}), sampling.guidance)
        x = integrate(velocity, noise, steps=sampling.steps, method=sampling.method, stop=self.stop)
        return x + (1.0 - self.stop) * velocity(x, jnp.full(mask.shape[:1], self.stop))

    def log_density(
        self, points: jax.Array, mask: jax.Array, key: jax.Array, sampling: Sampling
    ) -> jax.Array:
        """By the change of variables, with Hutchinson's estimate of the divergence."""
        found = log_density(
            self.velocity(mask, {}),
            self.stop * points,
            mask,
            steps=sampling.steps,
            method=sampling.method,
            key=key,
            stop=self.stop,
        )
        coordinates = points.shape[-1] * jnp.sum(mask, axis=-1)
        return found + coordinates.astype(jnp.float32) * math.log(self.stop)

    def velocity(self, mask: jax.Array, labels: Labels) -> Velocity:
        """v(x, t) of sets with this mask and these labels."""

        def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
            return (self.network(x, t, mask, labels) - x) / (1.0 - t)[:, None, None]

        return velocity


class VectorGaussians(nnx.Module):
    """Every vector drawn by itself from one mixture of K Gaussians, whatever the others are.

    Source: fitting a mixture of Gaussians to the latents after training is Ghosh et al. (2020),
    arXiv 1903.12436; here it is one of single vectors, because a latent is a set of them.
    """

    def __init__(
        self,
        config: PriorConfig,
        width: int,
        most: int,
        labels: Mapping[str, int],
        *,
        rngs: nnx.Rngs,
    ):
        if labels:
            raise ValueError(f"labels are {sorted(labels)}; kind 'gaussians' takes none, flow does")
        count, self.noise = config.components, config.noise
        means = 0.5 * jax.random.normal(rngs.params(), (count, width), jnp.float32)
        self.logits = nnx.Param(jnp.zeros((count,), jnp.float32))
        self.means = nnx.Param(means)
        # Lower triangular square roots of the precisions, with the logarithms of their diagonals.
        self.roots = nnx.Param(jnp.zeros((count, width, width), jnp.float32))

    def loss(self, points: jax.Array, mask: jax.Array, key: jax.Array, labels: Labels) -> jax.Array:
        """The negative log-likelihood of a coordinate of a blurred point."""
        blurred = points + self.noise * jax.random.normal(key, points.shape, jnp.float32)
        log_p = jnp.where(mask, self._log_p(blurred), 0.0)
        size = jnp.maximum(jnp.sum(mask), 1) * points.shape[-1]
        return -jnp.sum(log_p) / size.astype(jnp.float32)

    def draw(
        self, mask: jax.Array, key: jax.Array, labels: Labels, sampling: Sampling
    ) -> jax.Array:
        """Independent vectors."""
        which_key, noise_key = jax.random.split(key)
        which = jax.random.categorical(which_key, self.logits[...], shape=mask.shape)
        noise = jax.random.normal(noise_key, (*mask.shape, self.means.shape[-1]), jnp.float32)
        inverses = jax.vmap(_inverse)(self._precision_roots())
        return self.means[...][which] + jnp.einsum("bsij,bsj->bsi", inverses[which], noise)

    def log_density(
        self, points: jax.Array, mask: jax.Array, key: jax.Array, sampling: Sampling
    ) -> jax.Array:
        """The sum over the vectors."""
        return jnp.sum(jnp.where(mask, self._log_p(points), 0.0), axis=-1)

    def _precision_roots(self) -> jax.Array:
        """A with precision A^T A, lower triangular, (K, R, R)."""
        lower = jnp.tril(self.roots[...], -1)
        scale = jnp.exp(jnp.diagonal(self.roots[...], axis1=1, axis2=2))
        return lower + scale[..., None] * jnp.eye(scale.shape[-1], dtype=jnp.float32)[None]

    def _log_p(self, points: jax.Array) -> jax.Array:
        """log p of each vector, (B, S)."""
        roots = self._precision_roots()
        away = points[:, :, None] - self.means[...][None, None]
        white = jnp.einsum("kij,bskj->bski", roots, away)
        scale = jnp.sum(jnp.diagonal(self.roots[...], axis1=1, axis2=2), axis=-1)
        normal = jnp.square(white) + jnp.float32(math.log(2 * math.pi))
        shares = jax.nn.log_softmax(self.logits[...]) + scale
        return jax.nn.logsumexp(shares[None, None] - 0.5 * jnp.sum(normal, axis=-1), axis=-1)


DENSITIES: dict[str, type] = {"flow": SetFlow, "gaussians": VectorGaussians}


def _guided(given: Velocity, free: Velocity, guidance: float) -> Velocity:
    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        without = free(x, t)
        return without + guidance * (given(x, t) - without)

    return velocity


def _inverse(root: jax.Array) -> jax.Array:
    one = jnp.eye(root.shape[-1], dtype=jnp.float32)
    return jax.scipy.linalg.solve_triangular(root, one, lower=True)
