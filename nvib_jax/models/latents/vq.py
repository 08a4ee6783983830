"""VQ: every vector is replaced by the nearest one of a codebook, so that a text becomes symbols.

    c_i = argmin_k |z_i - e_k|^2        F = sum_i pi_i delta(e_(c_i))

Source: van den Oord, Vinyals & Kavukcuoglu (2017), "Neural Discrete Representation Learning", arXiv
1711.00937. The quantiser takes no noise, so with a distribution of the codes
(`nvib_jax.models.latents.codes`) there is a bound without a sample:

    log p(x) >= log p(m) + log p(c | m) + log p(x | F)

The gradient of the decoder passes the quantiser straight through (z + const), or by the rotation
trick of Fifty et al. (2024), "Restructuring Vector Quantization with the Rotation Trick", arXiv
2410.06424: e = (|e| / |z|) R z with R the rotation from z to e, a constant.

The codebook is learned as in the paper's appendix A.1, by exponential moving averages. They need no
state beside the parameters, because they are a gradient descent with a rate for each code: with
counts c and sums s of the vectors that take a code,

    n' = decay n + (1 - decay) c
    e' = (decay n e + (1 - decay) s) / n'  =  e - (1 - decay) / n' (c e - s)

and c e - s is the gradient of the codebook loss sum_i |sg(z_i) - e_(c_i)|^2 / 2. So the cost
"codebook" gives both: its gradient for the codebook is c e - s, and for the counts -c. They add up
over devices and parts of a batch as any gradient does; a step that is skipped changes no code;
checkpoints hold all there is. `nvib_jax.training.codebook` makes the step from them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax import mixture as mixtures
from nvib_jax.models.latents.codes import CodePrior
from nvib_jax.models.latents.rivals import VectorLatent, Vectors, attended_to, strided
from nvib_jax.types import Mixture, Posterior

GRADIENTS = ("rotation", "straight_through")


class QuantisedLatent(VectorLatent):
    """VQ: a share `stride_share` of a sentence's vectors, each the nearest of `codes` codes.

    Attributes:
      codebook: the codes, (K, D).
      code_use: n, moving averages of how often each is taken in a batch, (K,), in the unit in which
        the loss divides a batch: only ratios of them are used.
      code_prior: the distribution of a sentence's codes.
    """

    variational = True

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        init = nnx.initializers.normal(1.0, jnp.float32)
        self.codebook = nnx.Param(init(rngs.params(), (config.codes, config.dim)))
        self.code_use = nnx.Param(jnp.zeros((config.codes,), jnp.float32))
        self.code_prior = CodePrior(config, rngs=rngs)

    def vectors(self, x: jax.Array, mask: jax.Array) -> Vectors:
        """All states; which of them are attended to depends on the sentence's length alone."""
        return x, mask, strided(mask, self.config.stride_share)

    def spread(self, x: jax.Array) -> jax.Array:
        """Zeros, which nothing reads."""
        return jnp.zeros_like(x)

    def nearest(self, z: jax.Array) -> jax.Array:
        """The number of the code nearest to each vector (..., D), int32."""
        codes = self.codebook[...]
        near = jnp.einsum("...d,kd->...k", z, codes, precision=jax.lax.Precision.HIGHEST)
        square = 0.5 * jnp.sum(jnp.square(codes), axis=-1)
        return jnp.argmax(near - jnp.expand_dims(square, range(z.ndim - 1)), axis=-1)

    def still(self, posterior: Posterior) -> jax.Array:
        """The codes of the vectors, (B, S, D), with the gradient of `model.code_gradient`."""
        z = posterior.mean
        code = jax.lax.stop_gradient(self.codebook[...])[self.nearest(z)]
        return through(z, code, self.config.code_gradient)

    def draws(self, posterior: Posterior, key: jax.Array, count: int) -> Mixture:
        """The codes themselves, because there is nothing to draw."""
        return self.attended(self.still(posterior), attended_to(posterior), posterior.mask)

    def costs(self, posterior: Posterior, **_: Any) -> dict[str, jax.Array]:
        """What training charges and the bound subtracts, each (B,).

        "codes" is `-log p(c | m)` in nats, the KL of codes that are certain. "commitment" is
        `model.commitment` times |z - e|^2, which holds the encoder to its codes, and "codebook"
        |z - e|^2 / 2 with the gradients that the moving averages are made of.
        """
        z, kept = posterior.mean, attended_to(posterior)
        codes = self.nearest(z)
        book, use = self.codebook[...][codes], self.code_use[...][codes]

        def total(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(kept, x, 0.0), axis=-1)

        def distance(a: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(a - b), axis=-1)

        still, none = jax.lax.stop_gradient, jnp.zeros(z.shape[:1], jnp.float32)
        counted = use - still(use)  # 0, with the gradient 1 for each vector that takes the code
        return {
            "gaussian": none,
            "dirichlet": none,
            "codes": -self.log_prob(codes, kept),
            "commitment": self.config.commitment * total(distance(z, still(book))),
            "codebook": total(0.5 * distance(still(z), book) - counted),
        }

    def log_prob(self, codes: jax.Array, kept: jax.Array) -> jax.Array:
        """`log p(c | m)` of the codes (B, S) that are kept, in their order, nats, (B,)."""
        order = jnp.argsort(~kept, axis=1, stable=True)
        codes, there = (jnp.take_along_axis(x, order, axis=1) for x in (codes, kept))
        return self.code_prior.log_prob(codes, there)

    def log_density_ratio(self, mixture: Mixture, posterior: Posterior) -> jax.Array:
        """`log p(c | m) - log q(c | x)`, nats, (B,); inf for a mixture of other codes than x's."""
        kept, there = attended_to(posterior), ~jnp.isneginf(mixture.log_weights)
        codes, own = self.nearest(mixture.mean), self.nearest(posterior.mean)
        same = jnp.all(jnp.where(kept, there & (codes == own), ~there), axis=-1)
        return self.log_prob(codes, there) - jnp.where(same, 0.0, -jnp.inf)

    def sample_prior(self, key: jax.Array, counts: jax.Array, *, most: int) -> Mixture:
        """Codes drawn one after the other, so many of them (B,), each at most `most`."""
        drawn = self.codebook[...][self.code_prior.draw(key, counts, most=most)]
        first = jnp.broadcast_to(self.prior.mean[None, None], (counts.shape[0], 1, drawn.shape[-1]))
        place = jnp.arange(most + 1, dtype=counts.dtype)[None]
        mask = place <= counts[:, None]
        return self.attended(jnp.concatenate([first, drawn], axis=1), mask & (place > 0), mask)

    def interpolate(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """The codes of both, attended to in the proportion (1 - t) : t."""
        return mixtures.interpolate(a, b, t)


def through(z: jax.Array, code: jax.Array, gradient: str) -> jax.Array:
    """The code, as a function of the vector that it replaces.

    Args:
      z: vectors, shape (..., D).
      code: their codes, shape (..., D), which take no gradient.
      gradient: "straight_through" passes the gradient on as it is, z + const. "rotation" takes the
        map (|e| / |z|) R for the derivative, where R = I - 2 r r' + 2 q p' turns p = z / |z| to
        q = e / |e|, and r is the direction of p + q.

    Returns:
      Exactly `code`, shape (..., D).

    >>> z, code = jnp.array([3.0, 0.0]), jnp.array([0.0, 2.0])
    >>> print(through(z, code, "rotation"))
    [0. 2.]
    >>> print(jax.jacobian(lambda z: through(z, code, "rotation"))(z))  # 2/3 of a quarter turn
    [[ 0.     -0.6667]
     [ 0.6667  0.    ]]
    """
    still = jax.lax.stop_gradient
    code = still(code)
    if gradient == "straight_through":
        moved = z
    else:

        def unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            norm = jnp.linalg.norm(still(x), axis=-1, keepdims=True)
            norm = jnp.maximum(norm, 1e-6)  # padding is 0, and 0 / 0 would be NaN
            return still(x) / norm, norm

        def along(x: jax.Array) -> jax.Array:
            return jnp.sum(x * z, axis=-1, keepdims=True)

        (p, before), (q, after) = unit(z), unit(code)
        r = unit(p + q)[0]
        moved = after / before * (z - 2.0 * r * along(r) + 2.0 * q * along(p))
    return code + (moved - still(moved))
