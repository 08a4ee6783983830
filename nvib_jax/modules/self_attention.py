"""Self-attention whose keys and values are a mixture: NVIB inside a Transformer's layer.

    q(F | x) = NVIB(x);    F ~ q in training, its mean afterwards;    out = W_o DAttn(W_q x; F)

Queries come from x itself; only what attention reads passes the bottleneck. Component 0 is the
prior's, and all queries see it, also causal ones: attention that finds nothing goes there. Source:
Behjati, Fehr & Henderson (2023), arXiv 2310.17284.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.attention.cache import append, empty_memory
from nvib_jax.checks import check_some
from nvib_jax.mixture import read, sample
from nvib_jax.modules.attention import DenoisingAttention
from nvib_jax.modules.nvib import NVIB
from nvib_jax.modules.transformer import Block, split_key
from nvib_jax.types import Mixture, Posterior, Prior


class NVIBSelfAttention(nnx.Module):
    """Denoising self-attention: an `NVIB` layer, and attention from its input to its mixture.

    Args:
      dim: D.
      heads: H, a divisor of D.
      prior: the Dirichlet process; stored beside the parameters and never trained.
      pseudo_count: as in `NVIB`.
      initial_alpha: as in `NVIB`. In a layer that is given `previous`, 1 leaves the pseudo-counts
        of the layer below as they are; None would multiply `alpha_delta` by itself.
      initial_variance: likewise.
      num_samples: K, the draws of each component in training; causal attention takes 1 only.
      use_bias: as in `DenoisingAttention`.
      implementation: likewise.
      dtype: compute dtype of attention; the posterior is float32.
      rngs: parameter RNGs.

    Raises:
      ValueError: as `NVIB` and `DenoisingAttention`.

    In an encoder layer of your own, with its posterior's KLs in your loss:

    >>> from flax import nnx
    >>> from nvib_jax.modules import NVIBSelfAttention
    >>> prior = Prior.standard(8, alpha_delta=0.3)
    >>> attention = NVIBSelfAttention(8, heads=2, prior=prior, rngs=nnx.Rngs(0))
    >>> x, mask = jnp.ones((2, 5, 8)), jnp.ones((2, 5), bool)
    >>> out, posterior = attention(x, mask, key=jax.random.key(1))  # in training
    >>> x = x + out
    >>> kl = kl_gaussian(posterior, prior) + kl_dirichlet(posterior, prior)
    >>> out, _ = attention(x, mask, causal=True)  # evaluation, in a decoder
    >>> out.shape, kl.shape
    ((2, 5, 8), (2,))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        prior: Prior,
        pseudo_count: str = "exp_linear",
        initial_alpha: float | None = None,
        initial_variance: float = 0.1,
        num_samples: int = 1,
        use_bias: bool = True,
        implementation: str | None = None,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_samples = num_samples
        self.nvib = NVIB(
            dim,
            prior=prior,
            pseudo_count=pseudo_count,
            initial_alpha=initial_alpha,
            initial_variance=initial_variance,
            rngs=rngs,
        )
        self.attention = DenoisingAttention(
            dim, heads, use_bias=use_bias, implementation=implementation, dtype=dtype, rngs=rngs
        )

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        *,
        previous: Posterior | None = None,
        key: jax.Array | None = None,
        form: str = "expected_logit",
        causal: bool = False,
    ) -> tuple[jax.Array, Posterior]:
        """Whole sequences.

        Args:
          x: shape (B, N, D).
          mask: bool, shape (B, N), True = a valid token.
          previous: the posterior of the NVIB layer below, whose log pseudo-counts are added.
          key: draws the mixture, as in training; None reads the posterior without noise.
          form: how it is read then (`nvib_jax.read`).
          causal: each position sees the prior's component, itself and the positions before.

        Returns:
          (what attention adds to x, shape (B, N, D); the posterior, S = N + 1, for the KLs and for
          the NVIB layer above).

        Raises:
          ValueError: shapes that do not fit, a mask that hides everything, an unknown form, causal
            attention to K > 1 draws.
        """
        if causal:
            check_causal(self.num_samples)
        check_some("mask", mask)
        posterior = self.nvib(x, mask, previous)
        mixture, form = mixture_of(posterior, key, form, self.num_samples)
        return self.attention(x, self.attention.memory(mixture, form), causal=causal), posterior

    def weights(
        self,
        x: jax.Array,
        mask: jax.Array,
        *,
        previous: Posterior | None = None,
        form: str = "expected_logit",
    ) -> jax.Array:
        """The attention of `__call__` without noise, float32, shape (B, H, N, N + 1)."""
        mixture, form = mixture_of(self.nvib(x, mask, previous), None, form)
        return self.attention.weights(x, self.attention.memory(mixture, form))

    def empty_cache(
        self,
        rows: int,
        capacity: int,
        *,
        key: jax.Array | None = None,
        form: str = "expected_logit",
    ) -> Memory:
        """A memory for `step`: the prior's component, and places for `capacity` positions."""
        check_causal(self.num_samples)
        dim = self.attention.query.kernel.shape[0]
        nothing = jnp.zeros((rows, 1, dim), jnp.float32)
        posterior = self.nvib(nothing, jnp.zeros((rows, 1), bool))
        first = self._component(posterior, 0, key, form)
        return append(empty_memory(first, capacity + 1), first, 0)

    def step(
        self,
        x: jax.Array,
        cache: Memory,
        position: jax.Array,
        *,
        previous: Posterior | None = None,
        key: jax.Array | None = None,
        form: str = "expected_logit",
    ) -> tuple[jax.Array, Memory, Posterior]:
        """One position of the causal `__call__`.

        Args:
          x: shape (B, 1, D).
          cache: from `empty_cache` with the same form, and the positions before.
          position: the position, from 0, shape ().
          previous: this position's posterior of the NVIB layer below, S = 2.
          key: as in `__call__`; another one for each position.
          form: as in `__call__`.

        Returns:
          (what attention adds to x, (B, 1, D); the cache with this position; its posterior, S = 2).
        """
        posterior = self.nvib(x, jnp.ones(x.shape[:2], bool), previous)
        cache = append(cache, self._component(posterior, 1, key, form), position + 1)
        return self.attention(x, cache), cache, posterior

    def _component(
        self, posterior: Posterior, index: int, key: jax.Array | None, form: str
    ) -> Memory:
        """The memory of one component."""
        one = {
            field.name: getattr(posterior, field.name)[:, index : index + 1]
            for field in dataclasses.fields(posterior)
        }
        return self.attention.memory(*mixture_of(Posterior(**one), key, form))


class NVIBEncoderLayer(Block):
    """A Transformer's encoder layer, or a decoder-only one's, with `NVIBSelfAttention`.

        x <- x + NVIBSelfAttention(norm(x));    x <- x + MLP(norm(x))

    Only attention passes the bottleneck; what x itself carries from layer to layer does not.

    Args:
      dim: D.
      heads: H, a divisor of D.
      hidden: width of the feed-forward layer.
      norm: "pre" or "post", layer norm before or after each residual.
      dropout_rate: of what each of the two adds.
      dtype: compute dtype; the posterior is float32.
      rngs: parameter RNGs.
      options: what else `NVIBSelfAttention` takes, `prior` among them.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        norm: str = "pre",
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(
            dim, hidden, 2, norm=norm, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs
        )
        self.attention = NVIBSelfAttention(dim, heads, dtype=dtype, rngs=rngs, **options)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
        *,
        previous: Posterior | None = None,
        draw: jax.Array | None = None,
        form: str = "expected_logit",
        causal: bool = False,
    ) -> tuple[jax.Array, Posterior]:
        """x (B, N, D), mask (B, N) -> (x (B, N, D), the posterior, S = N + 1).

        `key` is for dropout, `draw` for the mixture; the rest is as in `NVIBSelfAttention`.
        """
        how: dict[str, Any] = {"previous": previous, "key": draw, "form": form, "causal": causal}
        return self._run(x, lambda h: self.attention(h, mask, **how), key)

    def step(
        self, x: jax.Array, cache: Memory, position: jax.Array, **how: Any
    ) -> tuple[jax.Array, Memory, Posterior]:
        """One position of the causal `__call__`; arguments as in `NVIBSelfAttention.step`."""
        longer = cache

        def attention(h: jax.Array) -> tuple[jax.Array, Posterior]:
            nonlocal longer
            out, longer, posterior = self.attention.step(h, cache, position, **how)
            return out, posterior

        x, posterior = self._run(x, attention, None)
        return x, longer, posterior

    def _run(self, x, attention, key):
        keys, found = split_key(key, 2), []

        def only_out(h: jax.Array) -> jax.Array:
            out, posterior = attention(h)
            found.append(posterior)
            return out

        x = self.residual(0, x, only_out, keys[0])
        return self.residual(1, x, self.mlp, keys[1]), found[0]


def mixture_of(
    posterior: Posterior, key: jax.Array | None, form: str, num_samples: int = 1
) -> tuple[Mixture, str]:
    """The mixture that self-attention reads, and the form to read it with.

    It is drawn if there is a key. No weight depends on another component, so that later positions
    change nothing before them, not even a gradient's last bit.
    """
    if key is None:
        return read(posterior, form, normalize=False)
    # For impulses all forms are equal, and this one has no terms of width D.
    return sample(key, posterior, num_samples=num_samples, normalize=False), "simplified"


def check_causal(num_samples: int) -> None:
    """Raise ValueError unless each token has one component, whose place says what may see it."""
    if num_samples > 1:
        raise ValueError(
            f"num_samples is {num_samples}; causal attention wants 1, a component a token"
        )
