"""What is computed of a batch by one pass through a model, as functions of a module for `jit`.

`of_module` makes each a function of the module's parts, as `PretrainedModel.compiled` wants it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.models.params import Params, merge
from nvib_jax.pretrained.architecture import Architecture
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.batches import Batch
from nvib_jax.pretrained.bottleneck import Bottleneck
from nvib_jax.pretrained.decoding import Decoding, generate
from nvib_jax.pretrained.transformer import Transformer
from nvib_jax.reading import Moments, Reading
from nvib_jax.reading import merge as merge_moments
from nvib_jax.reading import moments as moments_of

Readings = Mapping[str, Reading | Bottleneck]


def of_module(
    graph: nnx.GraphDef, params: Params, *arrays: Any, of: Callable[..., Any], **options: Any
) -> Any:
    """`of(module, *arrays, **options)` of the module's structure and parameters."""
    return of(merge(graph, params), *arrays, **options)


class Predicted(NamedTuple):
    """What logits say of the tokens that came.

    Attributes:
      log_p: log-probability of each token, float32, shape (...).
      log_most: of the likeliest one.
      log_mean: mean over the vocabulary, which label smoothing is made of.
    """

    log_p: jax.Array
    log_most: jax.Array
    log_mean: jax.Array


def predicted(logits: jax.Array, wanted: jax.Array) -> Predicted:
    """The log-probabilities of logits (..., V) at `wanted`, int (...)."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return Predicted(
        jnp.take_along_axis(log_p, wanted[..., None], axis=-1)[..., 0],
        jnp.max(log_p, axis=-1),
        jnp.mean(log_p, axis=-1),
    )


def states_of(
    module: Transformer, batch: Batch, view: View
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(states, what each should predict, which of those count), each (R, T, ...)."""
    if module.architecture.labels:
        state, target = module.summary(batch.tokens, batch.mask, view), _there(batch.target)
        return state, target[:, :1], _there(batch.target_mask)[:, :1]
    if batch.target is None:
        states = module.states(batch.tokens, batch.mask, view=view)
        return states[:, :-1], batch.tokens[:, 1:], batch.mask[:, 1:]
    target, counted = batch.target, _there(batch.target_mask)
    start = jnp.full((target.shape[0], 1), _there(module.architecture.start), target.dtype)
    given = jnp.concatenate([start, target[:, :-1]], axis=1)
    states = module.states(batch.tokens, batch.mask, given, counted, view)
    return states, target, counted


def cross_entropy(
    module: Transformer, batch: Batch, view: View, label_smoothing: float = 0.0
) -> jax.Array:
    """Nats a token of a batch, (); a share of each target may be spread over the vocabulary."""
    states, wanted, counted = states_of(module, batch, view)
    said = predicted(module.logits(states), wanted)
    nats = (label_smoothing - 1) * said.log_p - label_smoothing * said.log_mean
    return jnp.sum(jnp.where(counted, nats, 0.0)) / jnp.sum(counted, dtype=jnp.float32)


def nats(
    module: Transformer, readings: Readings, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(nats, tokens, right ones) of each text, (R,)."""
    states, wanted, counted = states_of(module, batch, View(readings))
    said = predicted(module.logits(states), wanted)
    return (
        -jnp.sum(jnp.where(counted, said.log_p, 0.0), axis=1),
        jnp.sum(counted, axis=1),
        jnp.sum(counted & (said.log_p >= said.log_most), axis=1),
    )


def gap_nats(module: Transformer, readings: Readings, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Nats of the answer in a gap, and whether it is the likeliest, (R,)."""
    states = module.encode(batch.tokens, batch.mask, View(readings))
    place, answer = (_there(batch.target)[:, i] for i in (0, 1))
    here = jnp.take_along_axis(states, place[:, None, None], axis=1)
    said = predicted(module.logits(here)[:, 0], answer)
    return -said.log_p, said.log_p >= said.log_most


def probabilities(module: Transformer, readings: Readings, batch: Batch) -> jax.Array:
    """Of a classifier's labels, (R, C)."""
    state = module.summary(batch.tokens, batch.mask, View(readings))
    return jax.nn.softmax(module.logits(state)[:, 0], axis=-1)


def shares(
    module: Transformer, readings: Readings, batch: Batch
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Of each attention (the sum of the prior's share over queries (R, H), their number (R, 1))."""
    view = View(readings)
    everything(module, batch, view)
    found = {}
    for name, taken in view.shares.items():
        writes = module.architecture.kind == "seq2seq" and not name.startswith("encoder")
        mask = _there(batch.target_mask) if writes else batch.mask
        queries = mask[..., None].astype(jnp.float32)
        mean = sum(taken) / len(taken)
        found[name] = (jnp.sum(mean * queries, axis=1), jnp.sum(queries, axis=1))
    return found


def everything(module: Transformer, batch: Batch, view: View) -> None:
    """One pass in which every attention is read, also at the last token."""
    if module.architecture.labels:
        module.summary(batch.tokens, batch.mask, view)
    elif batch.target is None:
        module.states(batch.tokens, batch.mask, view=view)
    else:
        states_of(module, batch, view)


def moments(
    module: Transformer, readings: Readings, batch: Batch, before: dict[str, Moments] | None
) -> dict[str, Moments]:
    """Moments of what each attention reads, joined to those before."""
    view = View(readings)
    everything(module, batch, view)
    head_dim = module.architecture.head_dim
    found = {n: moments_of(x, mask, head_dim=head_dim) for n, (x, mask) in view.read.items()}
    return found if before is None else {n: merge_moments(before[n], found[n]) for n in found}


def written(
    module: Transformer,
    readings: Readings,
    batch: Batch,
    key: jax.Array,
    *,
    rules: Decoding,
    about: Architecture,
) -> jax.Array:
    """Ids that are written, (R, max_new_tokens)."""
    memories: tuple[Any, ...] = ()
    prompt, mask, view = batch.tokens, batch.mask, View(readings)
    if about.kind == "seq2seq":
        states = module.encode(batch.tokens, batch.mask, view)
        memories = module.memories(states, batch.mask, view)
        prompt = jnp.full((batch.tokens.shape[0], 1), _there(about.start), jnp.int32)
        mask = jnp.ones(prompt.shape, bool)
    rows, length = prompt.shape
    caches = module.empty_caches(rows, length + rules.max_new_tokens)
    x, caches = module.decode(prompt, mask, memories, caches, 0, view.again())

    def step(caches: Any, tokens: jax.Array, place: jax.Array) -> tuple[jax.Array, Any]:
        real = jnp.ones(tokens.shape, bool)
        x, caches = module.decode(tokens, real, memories, caches, place, view.again())
        return module.logits(x)[:, 0], caches

    logits = module.logits(x[:, -1:])[:, 0]
    return generate(step, caches, logits, prompt, key, decoding=rules, about=about)


def _there(value: Any) -> Any:
    """A part that the caller knows to be there."""
    assert value is not None
    return value
