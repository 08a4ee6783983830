"""The latent, between encoder and decoder: states -> posterior -> mixture.

Every kind of text autoencoder here is an encoder, a latent and a decoder, and they differ only in
the latent: `nvib_jax.models.latents.Latent` says what a latent does. This file has the NVIB's;
`rivals.py` has its rivals'.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

from nvib_jax import mixture as mixtures
from nvib_jax import objective
from nvib_jax.kl import kl_dirichlet, kl_gaussian
from nvib_jax.modules import NVIB
from nvib_jax.types import Mixture, Posterior, Prior


class DirichletLatent(NVIB):
    """The NVIB: a Gaussian and a pseudo-count for each encoder state.

    Args:
      config: an `NVAEConfig`.
      rngs: parameter RNGs.
    """

    variational = True
    pools = False

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        super().__init__(
            config.dim,
            prior=Prior.standard(
                config.dim, alpha=config.prior_alpha, alpha_delta=config.alpha_delta
            ),
            pseudo_count=config.pseudo_count,
            # None is resolved here, as a Python float. NVIB would read it from the prior's float32
            # array, and the initial bias would differ in its last bit.
            initial_alpha=config.initial_alpha or config.alpha_delta or 1.0,
            initial_kept=config.initial_kept,
            initial_variance=config.initial_variance,
            rngs=rngs,
        )
        self.num_samples, self.threshold = config.num_samples, config.threshold

    def draw(self, posterior: Posterior, key: jax.Array) -> Mixture:
        """The training mixture: K draws of each component."""
        return mixtures.sample(key, posterior, num_samples=self.num_samples)

    def read(
        self,
        posterior: Posterior,
        form: str,
        key: jax.Array | None = None,
        *,
        threshold: float | jax.Array | None = None,
    ) -> tuple[Mixture, str]:
        """The evaluation mixture and the attention form that goes with it.

        Args:
          posterior: from `__call__`.
          form: a form of denoising attention, "drawn", or "average": the mean of eight drawn
            mixtures, a mixture of eight times as many impulses.
          key: for "drawn" and "average" only.
          threshold: components with a pseudo-count at most this are dropped; None is the config's.

        Raises:
          ValueError: an unknown form, or a draw without a key.
        """
        least = self.threshold if threshold is None else threshold
        return mixtures.read(
            posterior, form, threshold=least, key=key, num_samples=self.num_samples
        )

    def costs(
        self,
        posterior: Posterior,
        *,
        gaussian_form: str = "exact",
        dirichlet_form: str = "exact",
        alpha_delta: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """The two KLs in nats, each (B,); `alpha_delta`, if given, replaces the prior's."""
        prior, count = self.prior, self.num_samples
        if alpha_delta is not None:
            prior = dataclasses.replace(prior, alpha_delta=alpha_delta)
        return {
            "gaussian": kl_gaussian(posterior, prior, num_samples=count, form=gaussian_form),
            "dirichlet": kl_dirichlet(posterior, prior, num_samples=count, form=dirichlet_form),
        }

    def log_density_ratio(self, mixture: Mixture, posterior: Posterior) -> jax.Array:
        """`log p(F) - log q(F | x)` of a mixture that `draw` made, nats, (B,)."""
        return objective.log_density_ratio(mixture, posterior, self.prior)

    def sample_prior(self, key: jax.Array, counts: jax.Array, *, most: int) -> Mixture:
        """Draws of the prior with these numbers of vectors (B,), each at most `most`."""
        return mixtures.sample_prior(key, self.prior, counts, max_length=most)

    def interpolate(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """From a (t = 0) to b (t = 1): the mixture `(1 - t) a + t b`."""
        return mixtures.interpolate(a, b, t)
