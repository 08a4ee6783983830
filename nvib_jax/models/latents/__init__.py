"""The kinds of latent: the NVIB and its rivals, by the names that `model.kind` has for them.

A latent stands between encoder and decoder: states -> posterior -> mixture. Every kind of text
autoencoder here is an encoder, a latent and a decoder, and they differ only in the latent. A class
with the methods of `Latent`, entered into `LATENTS`, is a further kind.
"""

from typing import Any, ClassVar, Protocol

import jax

from nvib_jax.models.latents.certain import AdversarialLatent, PlainLatent
from nvib_jax.models.latents.dirichlet import DirichletLatent
from nvib_jax.models.latents.rivals import (
    GaussianLatent,
    PooledLatent,
    QueriesLatent,
    StridedLatent,
)
from nvib_jax.models.latents.vq import QuantisedLatent
from nvib_jax.types import Mixture, Posterior

__all__ = [
    "DIVERGENCES",
    "LATENTS",
    "AdversarialLatent",
    "DirichletLatent",
    "Latent",
    "VariationalLatent",
]

DIVERGENCES = ("gaussian", "dirichlet", "codes")  # the costs that are KLs, and make the bound


class Latent(Protocol):
    """What a latent does; it is a module, called as `Latent(config, rngs=rngs)`.

    Attributes:
      variational: whether it has a density, and with it the methods of `VariationalLatent`.
      pools: whether its vectors are others than the tokens', as many for every sentence.
    """

    variational: ClassVar[bool]
    pools: ClassVar[bool]

    def __call__(self, x: jax.Array, mask: jax.Array) -> Posterior:
        """Encoder states (B, N, D), which of them are valid (B, N) -> posterior.

        Component 0 is the prior's; S is N + 1, or the number of pooled vectors plus 1.
        """
        ...

    def draw(self, posterior: Posterior, key: jax.Array) -> Mixture:
        """The mixture that the decoder reads in training."""
        ...

    def read(
        self, posterior: Posterior, form: str, key: jax.Array | None = None
    ) -> tuple[Mixture, str]:
        """The mixture for evaluation, and the form of attention that goes with it.

        Args:
          posterior: from `__call__`.
          form: one of `nvib_jax.mixture.READS`.
          key: for the forms "drawn" and "average" only.
        """
        ...

    def costs(
        self,
        posterior: Posterior,
        *,
        gaussian_form: str = "exact",
        dirichlet_form: str = "exact",
        alpha_delta: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Name -> cost of each sentence, (B,); by default the KLs are those of the bound.

        Those named in `DIVERGENCES` are KLs in nats, which the bound subtracts, if there is one.
        `nvib_jax.models.terms.Terms` says how the loss weighs them by name.
        """
        ...

    def sample_prior(self, key: jax.Array, counts: jax.Array, *, most: int) -> Mixture:
        """Draws of the prior with these numbers of vectors (B,), each at most `most`."""
        ...

    def interpolate(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """From a (t = 0) to b (t = 1); t is (B,)."""
        ...


class VariationalLatent(Latent, Protocol):
    """A latent with a density, so that there is a bound on log p(x)."""

    prior: Any

    def log_density_ratio(self, mixture: Mixture, posterior: Posterior) -> jax.Array:
        """`log p(F) - log q(F | x)` of a mixture that `draw` made, nats, (B,)."""
        ...


LATENTS: dict[str, type[Any]] = {
    "NVAE": DirichletLatent,
    "T": PlainLatent,
    "VTV": GaussianLatent,
    "VTP": PooledLatent,
    "VTS": StridedLatent,
    "VTQ": QueriesLatent,
    "VQ": QuantisedLatent,
    "AAE": AdversarialLatent,
}
