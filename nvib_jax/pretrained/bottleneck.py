"""A learned reading of an attention: NVIB, from the identity on, for fine-tuning.

    q(F | x):   mean = W x + b,   log variance = V x + c,   log alpha = a.(x*x) + w.x + d

W and V are matrices of 2 D^2 numbers an attention or, with a rank r, a multiple of the identity and
a product of two thin ones, 4 r D numbers (LoRA, Hu et al. 2022, arXiv 2106.09685).

At first W = 1, V = 0 and a = 1/2r, so that the attention is the pretrained one but for the prior's
component, a little noise and `alpha` nats (`nvib_jax.reading`). Pseudo-counts are *centred*: the
prior's is `concentration`, and the tokens' are as far above it as they were, which no evaluation
sees. In the published scale they are e^5 to e^300, draws have no noise, and KLs no meaning.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nvib_jax.mixture import expected, sample
from nvib_jax.posterior import log_pseudo_count, make_posterior
from nvib_jax.reading import Reading, root
from nvib_jax.types import Posterior, Prior


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """The kernel `scale I + down up`: down (D, R), up (R, D), scale ()."""

    scale: jax.Array
    down: jax.Array
    up: jax.Array


Kernel = jax.Array | LowRank


def _times(x: jax.Array, kernel: Kernel) -> jax.Array:
    if isinstance(kernel, LowRank):
        return kernel.scale * x + jnp.dot(jnp.dot(x, kernel.down), kernel.up)
    return jnp.dot(x, kernel)


def _multiple_of_identity(scale: jax.Array, dim: int, rank: int, key: jax.Array | None) -> Kernel:
    """`scale I`; of a rank, one of the two thin matrices is random and the other 0."""
    if not rank:
        return scale * jnp.eye(dim)
    if key is None:
        raise ValueError("a bottleneck of low rank begins with random numbers and needs a key")
    down = dim**-0.5 * jax.random.normal(key, (dim, rank), jnp.float32)
    return LowRank(scale, down, jnp.zeros((rank, dim)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bottleneck:
    """The maps from what an attention reads to a posterior, and its prior.

    Attributes:
      prior: the empirical one, its pseudo-count `concentration`; it is not trained.
      mean_kernel, mean_bias: W, (D, D) or `LowRank`, and b, (D,).
      variance_kernel, variance_bias: V and c.
      alpha_quadratic, alpha_linear, alpha_bias: a and w, (D,), and d, ().
    """

    prior: Prior
    mean_kernel: Kernel
    mean_bias: jax.Array
    variance_kernel: Kernel
    variance_bias: jax.Array
    alpha_quadratic: jax.Array
    alpha_linear: jax.Array
    alpha_bias: jax.Array

    @classmethod
    def identity(
        cls,
        reading: Reading,
        *,
        head_dim: int,
        concentration: float = 1.0,
        alpha_delta: float = 1.0,
        rank: int = 0,
        key: jax.Array | None = None,
    ) -> "Bottleneck":
        """The bottleneck that is this reading.

        Args:
          reading: its tau's alpha must be finite and its sigma above 0, because a KL to the prior
            is infinite without variance.
          head_dim: E.
          concentration: the prior's pseudo-count.
          alpha_delta: pseudo-counts that every token adds to the prior's; 1 has the KL least where
            each token counts as much as the prior.
          rank: R of W and V; 0 makes them whole matrices.
          key: of the random half of a W and a V of low rank.

        Raises:
          ValueError: an alpha that is not finite, no sigma, or a rank without a key.
        """
        prior, tau = reading.prior, reading.tau
        if not (math.isfinite(float(tau.alpha)) and float(tau.sigma) > 0):
            raise ValueError(
                f"tau has alpha {float(tau.alpha)} and sigma {float(tau.sigma)}; wanted a finite "
                "alpha and a sigma above 0: without variance the KL to the prior is infinite"
            )
        dim, start = prior.mean.shape[0], jnp.float32(math.log(concentration))
        share = jnp.float32(tau.mean)
        keys = (None, None) if key is None else jax.random.split(key)
        return cls(
            prior=dataclasses.replace(prior, log_alpha=start, alpha_delta=jnp.float32(alpha_delta)),
            mean_kernel=_multiple_of_identity(share, dim, rank, keys[0]),
            mean_bias=(1 - share) * prior.mean,
            variance_kernel=_multiple_of_identity(jnp.float32(0.0), dim, rank, keys[1]),
            variance_bias=2 * jnp.log(jnp.float32(tau.sigma)) + prior.log_variance,
            alpha_quadratic=jnp.full(dim, 1 / (2 * root(head_dim))),
            alpha_linear=jnp.zeros(dim),
            alpha_bias=jnp.float32(tau.alpha) - prior.log_alpha + start,
        )

    def posterior(self, x: jax.Array, mask: jax.Array) -> Posterior:
        """x (B, N, D), mask (B, N) -> `Posterior`, S = N + 1."""
        x = x.astype(jnp.float32)
        log_alpha = log_pseudo_count(
            x, self.alpha_linear, self.alpha_bias, self.alpha_quadratic, form="exp_quadratic"
        )
        return make_posterior(
            _times(x, self.mean_kernel) + self.mean_bias[None, None],
            _times(x, self.variance_kernel) + self.variance_bias[None, None],
            log_alpha,
            mask,
            self.prior,
        )

    def components(
        self, posterior: Posterior, *, head_dim: int, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """What attention reads of a posterior: (vectors (B, S, D), biases (B, S)).

        Drawn with a key; without one the means, with E[log pi] and the expected logit
        ("expected_logit" with geometric weights), not normalised, so that a cache may grow.
        """
        r = root(head_dim)
        if key is not None:
            drawn = sample(key, posterior)
            return drawn.mean, drawn.log_weights - jnp.sum(drawn.mean**2, axis=-1) / (2 * r)
        read = expected(posterior, log_weights="geometric", normalize=False)
        energy = posterior.mean**2 + jnp.exp(posterior.log_variance)
        return posterior.mean, read.log_weights - jnp.sum(energy, axis=-1) / (2 * r)

    @property
    def maps(self) -> dict[str, jax.Array]:
        """What is trained of it, by name: all but the prior."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["prior"]
        return {
            name if part is None else f"{name}_{part}": array
            for name, value in fields.items()
            for part, array in (
                vars(value).items() if isinstance(value, LowRank) else [(None, value)]
            )
        }

    @classmethod
    def of(cls, prior: Prior, maps: Mapping[str, jax.Array]) -> "Bottleneck":
        """The inverse of `maps`."""
        given = dict(maps)
        for name in ("mean_kernel", "variance_kernel"):
            if name not in given:
                given[name] = LowRank(  # type: ignore[assignment]
                    **{f.name: given.pop(f"{name}_{f.name}") for f in dataclasses.fields(LowRank)}
                )
        return cls(prior, **given)
