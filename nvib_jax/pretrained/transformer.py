"""One Transformer for all families: encoder, decoder or both, in the terms of an `Architecture`.

The decoder has one way through, `decode`: it appends tokens to its caches and attends from them. A
whole sentence is n tokens and empty caches, a prompt is the same, and writing is 1 token at a time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.attention.cache import append
from nvib_jax.attention.inputs import MASK_VALUE
from nvib_jax.modules.linear import Linear
from nvib_jax.modules.transformer import sinusoids
from nvib_jax.pretrained.architecture import Architecture, Size
from nvib_jax.pretrained.attention import Attention, RelativeBias, View

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nnx.gelu(x, approximate=False),
    "gelu_tanh": nnx.gelu,
    "relu": nnx.relu,
    "swish": nnx.swish,
}


class Norm(nnx.Module):
    """Layer norm, or RMS norm without a bias; computed in float32."""

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs):
        a = architecture
        self.rms, self.eps = a.rms, a.eps
        self.scale = nnx.Param(jnp.ones(a.dim))
        self.bias = None if a.rms else nnx.Param(jnp.zeros(a.dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, N, D) -> the same shape and dtype."""
        y = x.astype(jnp.float32)
        if not self.rms:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        y = y * self.scale[...].astype(jnp.float32)[None, None]
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)[None, None]
        return y.astype(x.dtype)


class Layer(nnx.Module):
    """Self-attention, cross-attention in decoders of two stacks, and a feed-forward network."""

    def __init__(
        self, architecture: Architecture, size: Size, name: str, *, cross: bool, rngs: nnx.Rngs
    ):
        a = architecture
        self.norm_first, self.activation = a.norm_first, a.activation
        self.attention = Attention(a, size.heads, f"{name}.self", rngs=rngs)
        self.cross = Attention(a, size.heads, "cross", rngs=rngs) if cross else None
        self.norms = nnx.List([Norm(a, rngs=rngs) for _ in range(3 if cross else 2)])
        self.up = Linear(a.dim, size.hidden, use_bias=a.biases, rngs=rngs)
        self.gate = Linear(a.dim, size.hidden, use_bias=a.biases, rngs=rngs) if a.gated else None
        self.down = Linear(size.hidden, a.dim, use_bias=a.biases, rngs=rngs)

    def encode(
        self, x: jax.Array, mask: jax.Array, position_bias: jax.Array | None, view: View
    ) -> jax.Array:
        """x (B, N, D), mask (B, N) -> (B, N, D)."""

        def attention(h: jax.Array) -> jax.Array:
            memory = self.attention.memory(h, mask, view)
            return self.attention(h, memory, view, position_bias=position_bias)

        return self._residual(-1, self._residual(0, x, attention, view), self.mlp, view)

    def decode(
        self,
        x: jax.Array,
        mask: jax.Array,
        memory: Memory | None,
        cache: Memory,
        place: int | jax.Array,
        position_bias: jax.Array | None,
        view: View,
    ) -> tuple[jax.Array, Memory]:
        """x (B, n, D) at `place` and after -> (B, n, D), and the cache with them."""
        places, longer = cache.bias.shape[1], cache
        own = place + jnp.arange(x.shape[1], dtype=jnp.int32)
        visible = jnp.arange(places, dtype=jnp.int32)[None] <= own[:, None]

        def attention(h: jax.Array) -> jax.Array:
            nonlocal longer
            longer = append(cache, self.attention.memory(h, mask, view), place)
            return self.attention(h, longer, view, visible=visible, position_bias=position_bias)

        x = self._residual(0, x, attention, view)
        if self.cross is not None:
            read, memory = self.cross, _there(memory)
            rows = memory.bias.shape[0]

            def cross(h: jax.Array) -> jax.Array:
                # The K prefixes of a beam are K queries of one memory, which is never copied.
                return read(h.reshape(rows, -1, h.shape[-1]), memory, view).reshape(h.shape)

            x = self._residual(1, x, cross, view)
        return self._residual(-1, x, self.mlp, view), longer

    def mlp(self, x: jax.Array) -> jax.Array:
        """The feed-forward network, (B, N, D) -> (B, N, D)."""
        hidden = ACTIVATIONS[self.activation](self.up(x))
        if self.gate is not None:
            hidden = hidden * self.gate(x)
        return self.down(hidden)

    def _residual(
        self,
        index: int,
        x: jax.Array,
        sublayer: Callable[[jax.Array], jax.Array],
        view: View,
    ) -> jax.Array:
        norm = self.norms[index]
        if self.norm_first:
            return x + view.dropout(sublayer(norm(x)))
        return norm(x + view.dropout(sublayer(x)))


class Stack(nnx.Module):
    """Layers, the relative bias that all of them share, and a last norm if norms come first."""

    def __init__(
        self, architecture: Architecture, size: Size, name: str, *, cross: bool, rngs: nnx.Rngs
    ):
        a = architecture
        self.layers = nnx.List(
            [Layer(a, size, f"{name}.{i}", cross=cross, rngs=rngs) for i in range(size.layers)]
        )
        relative = a.positions == "relative"
        two_sided = name == "encoder"
        self.bias = (
            RelativeBias(a, size.heads, two_sided=two_sided, rngs=rngs) if relative else None
        )
        self.norm = Norm(a, rngs=rngs) if a.norm_first else None
        # Without positions of their own BART's stacks would differ in nothing but their weights;
        # each has its table and its norm of the embeddings.
        learned = a.positions == "learned"
        rows = (a.max_length or 0) + a.position_offset
        init = nnx.initializers.normal(0.02)
        self.position = nnx.Param(init(rngs.params(), (rows, a.dim))) if learned else None
        self.embedding_norm = Norm(a, rngs=rngs) if a.embedding_norm else None

    def bias_at(self, start: int | jax.Array, length: int, places: int) -> jax.Array | None:
        """The bias (H, length, places) of queries at `start` and after, or None."""
        return None if self.bias is None else self.bias(start, length, places)

    def finished(self, x: jax.Array) -> jax.Array:
        """The states that leave the stack."""
        return x if self.norm is None else self.norm(x)


class Transformer(nnx.Module):
    """Embedding, encoder, decoder, head; each where the architecture has it.

    Args:
      architecture: what to build.
      rngs: parameter RNGs.
    """

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs):
        a = self.architecture = architecture
        init = nnx.initializers.normal(0.02)
        # Where embeddings are scaled up, they are of size 1 then.
        first = init if a.embedding_scale == 1 else nnx.initializers.normal(1 / a.embedding_scale)
        self.embedding = nnx.Param(first(rngs.params(), (a.vocab_size, a.dim)))
        self.token_type = (
            nnx.Param(init(rngs.params(), (a.token_types, a.dim))) if a.token_types else None
        )
        self.encoder = a.encoder and Stack(a, a.encoder, "encoder", cross=False, rngs=rngs)
        cross = a.encoder is not None
        self.decoder = a.decoder and Stack(a, a.decoder, "decoder", cross=cross, rngs=rngs)
        transform = a.head == "transform"
        self.transform = Linear(a.dim, a.dim, rngs=rngs) if transform else None
        self.transform_norm = Norm(a, rngs=rngs) if transform else None
        self.output = (
            Linear(a.dim, a.vocab_size, use_bias=False, rngs=rngs) if a.head == "untied" else None
        )
        self.output_bias = nnx.Param(jnp.zeros(a.vocab_size)) if a.output_bias else None
        self.pooler = Linear(a.dim, a.dim, rngs=rngs) if a.labels else None
        self.classifier = Linear(a.dim, len(a.labels), rngs=rngs) if a.labels else None

    def encode(self, tokens: jax.Array, mask: jax.Array, view: View) -> jax.Array:
        """The encoder's last states: tokens (B, N), mask (B, N) -> (B, N, D)."""
        stack = _there(self.encoder)
        x = view.dropout(self._embedded(stack, tokens, self._positions(mask, 0, None)))
        bias = stack.bias_at(0, tokens.shape[1], tokens.shape[1])
        for layer in stack.layers:
            x = layer.encode(x, mask, bias, view)
        return stack.finished(x)

    def memories(self, states: jax.Array, mask: jax.Array, view: View) -> tuple[Memory, ...]:
        """What the decoder's layers read: states (B, N, D) of the encoder, mask (B, N)."""
        return tuple(
            _there(layer.cross).memory(states, mask, view) for layer in _there(self.decoder).layers
        )

    def empty_caches(self, rows: int, places: int) -> tuple[Memory, ...]:
        """Caches of the decoder's layers with room for `places` tokens."""
        stack, a = _there(self.decoder), self.architecture
        shape = (rows, _there(a.decoder).heads, places, a.head_dim)
        zeros = jnp.zeros(shape, self.embedding[...].dtype)
        bias = jnp.full((rows, places), MASK_VALUE, jnp.float32)
        return tuple(Memory(key=zeros, value=zeros, bias=bias) for _ in stack.layers)

    def decode(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        memories: tuple[Memory, ...],
        caches: tuple[Memory, ...],
        place: int | jax.Array,
        view: View,
    ) -> tuple[jax.Array, tuple[Memory, ...]]:
        """Append tokens to the caches, and attend from them.

        Args:
          tokens: int, shape (B, n).
          mask: bool, shape (B, n), True = a real token.
          memories: from `memories`; () for a model of one stack.
          caches: from `empty_caches` or from an earlier call.
          place: where in the caches the first token goes, ().
          view: how attentions are read.

        Returns:
          (states (B, n, D), the caches with the tokens).
        """
        stack = _there(self.decoder)
        x = view.dropout(self._embedded(stack, tokens, self._positions(mask, place, caches[0])))
        bias = stack.bias_at(place, tokens.shape[1], caches[0].bias.shape[1])
        read = memories or (None,) * len(caches)
        longer = []
        for layer, memory, cache in zip(stack.layers, read, caches, strict=True):
            x, cache = layer.decode(x, mask, memory, cache, place, bias, view)
            longer.append(cache)
        return stack.finished(x), tuple(longer)

    def states(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        targets: jax.Array | None = None,
        targets_mask: jax.Array | None = None,
        view: View | None = None,
    ) -> jax.Array:
        """The states that the head reads, of whole sentences.

        Args:
          tokens, mask: shape (B, N): what is read; for a model of one stack, all there is.
          targets, targets_mask: shape (B, T): what the decoder of a second stack is given.
          view: how attentions are read; None is as they are.

        Returns:
          shape (B, N, D), or (B, T, D) with a second stack.
        """
        view = view or View()
        if self.decoder is None:
            return self.encode(tokens, mask, view)
        memories: tuple[Memory, ...] = ()
        if self.encoder is not None:
            states = self.encode(tokens, mask, view)
            memories = self.memories(states, mask, view)
            tokens, mask = _there(targets), _there(targets_mask)
        caches = self.empty_caches(*tokens.shape)
        return self.decode(tokens, mask, memories, caches, 0, view)[0]

    def summary(self, tokens: jax.Array, mask: jax.Array, view: View) -> jax.Array:
        """The state that a classifier's head reads, (B, 1, D).

        It is the first token's in an encoder; with a second stack, which is given the same text,
        it is the last one's.
        """
        if self.decoder is None:
            return view.dropout(self.encode(tokens, mask, view)[:, :1])
        start = jnp.full_like(tokens[:, :1], _there(self.architecture.start))
        given = jnp.concatenate([start, tokens[:, :-1]], axis=1)
        states = self.states(tokens, mask, given, mask, view)
        last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
        return view.dropout(jnp.take_along_axis(states, last[:, None, None], axis=1))

    def output_layer(self) -> tuple[jax.Array, jax.Array]:
        """Kernel (D, V) and bias (V,) of the logits, to which `head` gives the input.

        V is the number of labels in a classifier.
        """
        if self.classifier is not None:
            return self.classifier.kernel[...], _there(self.classifier.bias)[...]
        kernel = self.embedding[...].T if self.output is None else self.output.kernel[...]
        if self.output_bias is None:
            return kernel, jnp.zeros(kernel.shape[1], kernel.dtype)
        return kernel, self.output_bias[...]

    def head(self, states: jax.Array) -> jax.Array:
        """What the output layer multiplies: states (B, N, D) -> (B, N, D)."""
        if self.pooler is not None:
            return jnp.tanh(self.pooler(states))
        if self.transform is not None:
            hidden = ACTIVATIONS[self.architecture.activation](self.transform(states))
            return _there(self.transform_norm)(hidden)
        return states * jnp.asarray(self.architecture.output_scale, states.dtype)

    def logits(self, states: jax.Array) -> jax.Array:
        """Logits of every token: states (B, N, D) -> float32 (B, N, V)."""
        kernel, bias = self.output_layer()
        product = jnp.dot(self.head(states), kernel, preferred_element_type=jnp.float32)
        return product + bias.astype(jnp.float32)[None, None]

    def _positions(
        self, mask: jax.Array, place: int | jax.Array, cache: Memory | None
    ) -> jax.Array:
        """The position of each token, int (B, n); padding is counted or not as the family does."""
        if self.architecture.counted_positions:
            before: Any = 0
            if cache is not None:
                before = jnp.sum(cache.bias > MASK_VALUE / 2, axis=1, dtype=jnp.int32)[:, None]
            count = jnp.cumsum(mask.astype(jnp.int32), axis=1)
            return jnp.maximum(before + count - 1, 0)
        own = place + jnp.arange(mask.shape[1], dtype=jnp.int32)
        return jnp.broadcast_to(own[None], mask.shape)

    def _embedded(self, stack: Stack, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        a = self.architecture
        table = self.embedding[...]
        x = table[tokens] * jnp.asarray(a.embedding_scale, table.dtype)
        if stack.position is not None:
            x = x + stack.position[...][positions + a.position_offset].astype(x.dtype)
        elif a.positions == "sinusoid":
            x = x + jnp.asarray(sinusoids(_there(a.max_length), a.dim), x.dtype)[positions]
        if self.token_type is not None:
            x = x + self.token_type[...][0].astype(x.dtype)[None, None]
        return x if stack.embedding_norm is None else stack.embedding_norm(x)


def _there(value: Any) -> Any:
    """A part that the caller knows to be there."""
    assert value is not None
    return value
