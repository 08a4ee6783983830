"""An attention of a pretrained Transformer, read as it is or as a mixture with a prior.

Its vectors are projected to a `Memory` of head width. A reading (`nvib_jax.reading`) changes the
vectors before the projection, and a gate adds the prior's component; without a reading this is
ordinary attention, which a reading at alpha = infinity is equal to.
"""

import dataclasses
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory, attend
from nvib_jax.attention.inputs import MASK_VALUE
from nvib_jax.modules.linear import Linear
from nvib_jax.modules.transformer import dropout
from nvib_jax.pretrained.architecture import Architecture
from nvib_jax.pretrained.bottleneck import Bottleneck
from nvib_jax.reading import PriorTerms, Reading, gate, prior_terms, root, token_terms
from nvib_jax.types import Posterior


@dataclasses.dataclass
class View:
    """How one forward pass reads its attentions, and what it notes of them.

    Attributes:
      readings: of attentions by name; those that are not there are read as they are.
      draw: key of what bottlenecks draw; None reads them without noise.
      read: what each attention reads is noted here, name -> (x (B, S, D), mask (B, S)).
      key: of dropout; None is none.
      rate: of dropout.
      shares: what the prior's component takes is noted here, name -> [(B, T, H) of each layer].
      posteriors: of bottlenecks, name -> `Posterior`.
      first: the prior's component of bottlenecks, name -> (vector (B, D), bias (B,)).
    """

    readings: Mapping[str, Reading | Bottleneck] = dataclasses.field(default_factory=dict)
    draw: jax.Array | None = None
    key: jax.Array | None = None
    rate: float = 0.0
    read: dict[str, tuple[jax.Array, jax.Array]] = dataclasses.field(default_factory=dict)
    shares: dict[str, list[jax.Array]] = dataclasses.field(default_factory=dict)
    posteriors: dict[str, Posterior] = dataclasses.field(default_factory=dict)
    first: dict[str, tuple[jax.Array, jax.Array]] = dataclasses.field(default_factory=dict)
    _draws: int = 0

    def again(self) -> "View":
        """The view of a step more; it knows the prior's component of the cross-attentions."""
        cross = {name: part for name, part in self.first.items() if name == "cross"}
        return View(self.readings, draw=self.draw, first=cross)

    def dropout(self, x: jax.Array) -> jax.Array:
        """x with a share of it zeroed, by a key of its own each time; x itself without a key."""
        if self.key is None:
            return x
        self._draws += 1
        return dropout(x, self.rate, jax.random.fold_in(self.key, self._draws))


class Attention(nnx.Module):
    """Four linear maps, and attention of head width between them.

    Args:
      architecture: of the Transformer.
      heads: H.
      name: of its reading; see `Architecture.attentions`.
      rngs: parameter RNGs.
    """

    def __init__(self, architecture: Architecture, heads: int, name: str, *, rngs: nnx.Rngs):
        a = architecture
        self.name, self.heads, self.head_dim, self.scale = name, heads, a.head_dim, a.logit_scale
        width = heads * a.head_dim
        self.query = Linear(a.dim, width, use_bias=a.biases, rngs=rngs)
        self.key = Linear(a.dim, width, use_bias=a.biases, rngs=rngs)
        self.value = Linear(a.dim, width, use_bias=a.biases, rngs=rngs)
        self.out = Linear(width, a.dim, use_bias=a.biases, rngs=rngs)

    def memory(self, x: jax.Array, mask: jax.Array, view: View) -> Memory:
        """Keys, values and biases of x (B, S, D), of which mask (B, S) says what is there."""
        view.read[self.name] = (x, mask)
        reading = view.readings.get(self.name)
        bias = jnp.zeros(mask.shape, jnp.float32)
        if isinstance(reading, Bottleneck):
            x, bias = self._components(reading, x, mask, view)
        elif reading is not None:
            # `nvib_jax.reading` has keys of the values' vectors over r; r is in the query here, so
            # that the identity's keys are the pretrained ones.
            _, read, bias = token_terms(x, reading, head_dim=self.head_dim)
            x = read.astype(x.dtype)
        key, value = self.key(x), self.value(x)
        return Memory(
            key=jnp.swapaxes(self._by_head(key), 1, 2),
            value=jnp.swapaxes(self._by_head(value), 1, 2),
            bias=jnp.where(mask, bias.astype(jnp.float32), MASK_VALUE),
        )

    def __call__(
        self,
        x: jax.Array,
        memory: Memory,
        view: View,
        *,
        visible: jax.Array | None = None,
        position_bias: jax.Array | None = None,
    ) -> jax.Array:
        """Attend from x (B, T, D), and project.

        Args:
          x: shape (B, T, D).
          memory: from `memory`, S places.
          view: how it is read.
          visible: bool, shape (T, S), on top of the memory's mask; None is everything.
          position_bias: shape (H, T, S), or None.

        Returns:
          shape (B, T, D).
        """
        query = self._by_head(self.query(x)) * jnp.asarray(self.scale, x.dtype)
        batch, length = x.shape[:2]
        mask = None
        if visible is not None:
            mask = jnp.broadcast_to(visible[None], (batch, *visible.shape))
        reading = view.readings.get(self.name)
        if reading is None:
            out = attend(query, memory, mask=mask, position_bias=position_bias)
        else:
            out, lse = attend(query, memory, mask=mask, position_bias=position_bias, with_lse=True)
            terms = self._with_biases(self._prior_terms(reading, query, view), query)
            if position_bias is not None:
                terms = dataclasses.replace(
                    terms, logit=terms.logit + _mean_bias(position_bias, memory, mask)
                )
            view.shares.setdefault(self.name, []).append(jax.nn.sigmoid(terms.logit - lse))
            out = gate(out, lse, terms)
        return self.out(out.reshape(batch, length, -1))

    def _components(
        self, bottleneck: Bottleneck, x: jax.Array, mask: jax.Array, view: View
    ) -> tuple[jax.Array, jax.Array]:
        """The tokens' vectors (B, S, D) and biases (B, S); the prior's component is noted."""
        posterior = bottleneck.posterior(x, mask)
        key = None
        if view.draw is not None:  # cross-attentions have one name and so one draw
            key = jax.random.fold_in(view.draw, zlib.crc32(self.name.encode()))
        z, bias = bottleneck.components(posterior, head_dim=self.head_dim, key=key)
        view.posteriors[self.name] = posterior
        view.first[self.name] = z[:, 0], bias[:, 0]
        return z[:, 1:].astype(x.dtype), bias[:, 1:]

    def _prior_terms(
        self, reading: Reading | Bottleneck, query: jax.Array, view: View
    ) -> PriorTerms:
        """Logit and value of the prior's component for each query (B, T, H, E), without biases."""
        kernels = {
            "key_kernel": self._kernel(self.key),
            "value_kernel": self._kernel(self.value),
        }
        if isinstance(reading, Reading):
            r = jnp.asarray(root(self.head_dim), query.dtype)
            return prior_terms(query * r, reading, **kernels)
        z, bias = view.first[self.name]
        q, w_k, w_v = (a.astype(jnp.float32) for a in (query, *kernels.values()))
        key, value = (jnp.einsum("bd,dhe->bhe", z.astype(jnp.float32), w) for w in (w_k, w_v))
        logit = jnp.einsum("bthe,bhe->bth", q, key) + bias[:, None, None]
        value = jnp.broadcast_to(value[:, None], q.shape)
        return PriorTerms(logit, value, jnp.zeros_like(q))

    def _with_biases(self, terms, query: jax.Array):
        """The prior's key and value have the biases of the projections, as the tokens' have."""
        if self.key.bias is None:
            return terms
        key_bias, value_bias = (
            bias[...].astype(terms.logit.dtype).reshape(self.heads, -1)
            for bias in (self.key.bias, self.value.bias)
            if bias is not None
        )
        logit = terms.logit + jnp.einsum("bthe,he->bth", query.astype(key_bias.dtype), key_bias)
        return dataclasses.replace(terms, logit=logit, value=terms.value + value_bias[None, None])

    def _by_head(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, self.head_dim)

    def _kernel(self, linear: Linear) -> jax.Array:
        return self._by_head(linear.kernel[...])


def _mean_bias(position_bias: jax.Array, memory: Memory, mask: jax.Array | None) -> jax.Array:
    """The prior stands nowhere: it has the mean bias of the places a query sees, (B, T, H).

    So adding a constant to all biases changes nothing, as it changes nothing without a prior.
    """
    seen = (memory.bias > MASK_VALUE / 2)[:, None]
    seen = jnp.broadcast_to(seen, (seen.shape[0], *position_bias.shape[1:]))
    weight = (seen if mask is None else seen & mask).astype(jnp.float32)
    total = jnp.einsum("hts,bts->bth", position_bias.astype(jnp.float32), weight)
    return total / jnp.maximum(jnp.sum(weight, axis=-1), 1.0)[..., None]


class RelativeBias(nnx.Module):
    """T5's bias of the logits by the distance from query to key, in buckets; one table a stack."""

    def __init__(self, architecture: Architecture, heads: int, *, two_sided: bool, rngs: nnx.Rngs):
        self.buckets, self.max_distance = architecture.buckets, architecture.max_distance
        self.two_sided = two_sided
        self.relative = nnx.Param(
            nnx.initializers.normal(1.0)(rngs.params(), (architecture.buckets, heads))
        )

    def __call__(self, start: int | jax.Array, length: int, places: int) -> jax.Array:
        """The bias of queries at `start` and after: shape (H, length, places)."""
        query = start + jnp.arange(length, dtype=jnp.int32)[:, None]
        bucket = self._bucket(jnp.arange(places, dtype=jnp.int32)[None] - query)
        return jnp.moveaxis(self.relative[...][bucket], -1, 0).astype(jnp.float32)

    def _bucket(self, offset: jax.Array) -> jax.Array:
        """The row for a key that is `offset` places to the right."""
        buckets, first = self.buckets, jnp.zeros_like(offset)
        if self.two_sided:
            buckets //= 2
            first, distance = jnp.where(offset > 0, buckets, 0), jnp.abs(offset)
        else:
            distance = jnp.maximum(-offset, 0)
        exact = buckets // 2
        ratio = jnp.maximum(distance, 1).astype(jnp.float32) / exact
        steps = jnp.log(ratio) / jnp.log(jnp.float32(self.max_distance / exact)) * (buckets - exact)
        far = jnp.minimum(exact + steps.astype(jnp.int32), buckets - 1)
        return first + jnp.where(distance < exact, distance, far)
