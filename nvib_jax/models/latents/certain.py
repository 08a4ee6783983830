"""Rivals of the NVIB whose vectors take no noise: T, and AAE, which has a prior to draw from.

AAE holds the distribution of its vectors over texts to N(0, 1): a discriminator learns to tell them
from draws of that, and the encoder to look like those. Source: Makhzani et al. (2015), "Adversarial
Autoencoders", arXiv 1511.05644. With words of the encoder's input blanked
(`objective.encoder_noise`) it is DAAE, the denoising adversarial autoencoder of Shen et al. (2020),
"Educating Text Autoencoders: Latent Representation Guidance via Denoising", arXiv 1905.12777.

One step trains both sides, because the costs give each its own part of the gradient only:

    discriminator    -log D(z_prior) - log(1 - D(sg(z)))
    adversary        -log D(z), D fixed: the form of Goodfellow et al. (2014) that does not saturate
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax import mixture as mixtures
from nvib_jax.models.latents.rivals import VectorLatent, Vectors, attended_to, pooled
from nvib_jax.modules.linear import Linear
from nvib_jax.types import Mixture, Posterior


class CertainLatent(VectorLatent):
    """Vectors without noise, which have no density and no KL; subclasses choose the vectors."""

    variational = False

    def spread(self, x: jax.Array) -> jax.Array:
        """Zeros, which nothing reads."""
        return jnp.zeros_like(x)

    def still(self, posterior: Posterior) -> jax.Array:
        """The means, which are the vectors."""
        return posterior.mean

    def draws(self, posterior: Posterior, key: jax.Array, count: int) -> Mixture:
        """The vectors themselves, because there is nothing to draw."""
        return self.attended(posterior.mean, attended_to(posterior), posterior.mask)

    def costs(self, posterior: Posterior, **_: Any) -> dict[str, jax.Array]:
        """Zeros."""
        zeros = jnp.zeros(posterior.mean.shape[:1], jnp.float32)
        return {"gaussian": zeros, "dirichlet": zeros}

    def sample_prior(self, key: jax.Array, counts: jax.Array, *, most: int) -> Mixture:
        """Draws of N(0, 1), which mean nothing unless something held the vectors to it."""
        return self.gaussians(key, counts, most)


class PlainLatent(CertainLatent):
    """T: every vector without noise. Its prior draws mean nothing."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        # Two keys are drawn in place of those for the variance map, which this latent lacks, so
        # that its decoder starts from the same parameters as that of VTV, VTP and VTS.
        rngs.params(), rngs.params()

    def vectors(self, x: jax.Array, mask: jax.Array) -> Vectors:
        """All states."""
        return x, mask, mask

    def interpolate(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """The vectors of both, attended to in the proportion (1 - t) : t."""
        return mixtures.interpolate(a, b, t)


class AdversarialLatent(CertainLatent):
    """AAE: one vector, the `pool` of the states, and a discriminator that judges it."""

    pools = True

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.up = Linear(config.dim, config.hidden, rngs=rngs)
        self.judge = Linear(config.hidden, 1, rngs=rngs)

    def vectors(self, x: jax.Array, mask: jax.Array) -> Vectors:
        """One vector, (B, 1, D)."""
        return pooled(x, mask, self.config.pool)

    def interpolate(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """The points on the straight line between the two vectors."""
        return self.between(a, b, t)

    def logit(self, z: jax.Array) -> jax.Array:
        """What the discriminator takes the vectors (B, D) for: the log odds of the prior, (B,)."""
        return self.judge(nnx.gelu(self.up(z)))[:, 0]

    def aggregate_costs(self, posterior: Posterior, key: jax.Array) -> dict[str, jax.Array]:
        """What the discriminator costs, and what it charges the encoder, each (B,), nats.

        Args:
          posterior: of a batch.
          key: PRNG key of the draws of the prior.
        """
        z, still = posterior.mean[:, 1], jax.lax.stop_gradient
        prior = jax.random.normal(key, z.shape, jnp.float32)
        seen = self.logit(still(z))
        # Equal logits of one point: the difference is 0, and so is its gradient for the
        # discriminator, which leaves the one for the vector.
        fooled = still(seen) + self.logit(z) - seen
        return {
            "discriminator": nnx.softplus(-self.logit(prior)) + nnx.softplus(seen),
            "adversary": self.config.adversary * nnx.softplus(-fooled),
        }
