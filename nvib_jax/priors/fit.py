"""Fits a prior to the latents of a trained model's training texts; the model stays as it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.data.batches import choose_buckets, endless_epochs
from nvib_jax.models.params import digest_of, merge, split
from nvib_jax.priors.config import PriorConfig, check_effects
from nvib_jax.priors.points import PointMap, features
from nvib_jax.priors.prior import LearnedPrior, fresh
from nvib_jax.progress import track
from nvib_jax.text.engine import Engine

BUCKETS = 4  # padded numbers of vectors, each compiled once


def fit_prior(
    model: Engine,
    texts: Sequence[str],
    config: PriorConfig | None = None,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> LearnedPrior:
    """Fit a prior to the latents of texts.

    Args:
      model: whose latents they are; it must encode texts to a posterior.
      texts: training texts, cleaned as the model's were.
      config: what is fitted, and how.
      labels: name of a label -> its value for each text, by which samples can be guided; a flow's
        only.
      progress: called with a line of text, ten times or more.

    Raises:
      ValueError: no texts, labels that are not one for each text, a model without a posterior, or
        a field of the config that the kind has no use for.
    """
    import optax

    c = config or PriorConfig()
    check_effects(c)
    model.check_can("encode")
    named = {name: tuple(sorted(set(values))) for name, values in (labels or {}).items()}
    for name, values in (labels or {}).items():
        if len(values) != len(texts):
            raise ValueError(f"label {name} has {len(values)} values; wanted {len(texts)}")
    classes = {
        name: np.array([named[name].index(value) for value in values], np.int32)
        for name, values in (labels or {}).items()
    }
    progress(f"encoding {len(texts):,} texts")
    sets, log_variance = encoded(model, texts)
    there = [i for i, vectors in enumerate(sets) if len(vectors)]
    vectors = np.concatenate(sets)
    point_map = PointMap.of(vectors, log_variance, c.variance_share)
    ends = np.cumsum([len(sets[i]) for i in there])
    points = np.split(np.asarray(point_map.coordinates(vectors)), ends[:-1])
    classes = {name: values[there] for name, values in classes.items()}
    width = len(point_map.scale)
    progress(f"fitting {c.kind} to {len(vectors):,} vectors in {width} directions")

    graph, params = split(fresh(c, width, model.max_length, named))
    warmup = min(max(c.steps // 20, 1), c.steps - 1)  # a single step has none
    rate = optax.warmup_cosine_decay_schedule(
        0.0, c.learning_rate, warmup, c.steps, 0.02 * c.learning_rate
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98))

    @jax.jit
    def step(params, state, average, index, points, mask, labels):
        key = jax.random.fold_in(jax.random.key(c.seed), index)

        def loss(params):
            return merge(graph, params).loss(points, mask, key, labels)

        value, slopes = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int32 powers
            updates, state = optimizer.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        # The average starts with the first parameters, which it forgets faster at first.
        early = (1.0 + index.astype(jnp.float32)) / (10.0 + index.astype(jnp.float32))
        decay = jnp.minimum(jnp.float32(c.average), early)
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, params)
        return params, state, average, value

    state, average, losses = optimizer.init(params), params, []
    batches = _batches(points, classes, c)
    for index in track(range(c.steps), "prior", total=c.steps, unit="steps"):
        params, state, average, loss = step(params, state, average, np.int32(index), *next(batches))
        losses.append(loss)
        if (index + 1) % max(c.steps // 10, 1) == 0:
            progress(f"prior: step {index + 1:,}, loss {np.mean(jax.device_get(losses)):.4f}")
            losses.clear()
    return LearnedPrior(c, named, model.max_length, point_map, average, digest_of(model.params))


def encoded(model: Engine, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """(the present vectors [mu, log alpha] of each text, (n, D + 1); the mean log variance (1, D)).

    Texts are encoded a batch at a time, and only present vectors are held.
    """
    run = model.compiled(_encode)
    sets: list[Any] = [None] * len(texts)
    total: Any = 0.0
    count = 0
    for part, tokens, mask in model.batches(model.tokenize(texts)):
        found = jax.device_get(run(model.params, tokens, mask))
        # The rows that fill up the batch are left out.
        vectors, there, log_variance = (array[: len(part)] for array in found)
        for place, row in enumerate(part):
            sets[row] = vectors[place][there[place]]
        total, count = total + log_variance[there].sum(0), count + there.sum()
    return sets, (total / max(count, 1))[None]


def _encode(model: Any, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
    posterior = model.encode(tokens, mask)
    return features(posterior), posterior.present[:, 1:], posterior.log_variance[:, 1:]


def _batches(
    points: Sequence[np.ndarray], classes: Mapping[str, np.ndarray], c: PriorConfig
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """Endless epochs in batches of about as many vectors each, in random order."""
    counts = np.array([len(p) for p in points])
    buckets = choose_buckets(counts, BUCKETS)
    for members, width in endless_epochs(counts, buckets, c.batch_size, c.seed):
        batch = np.zeros((c.batch_size, width, points[0].shape[1]), np.float32)
        mask = np.zeros(batch.shape[:2], bool)
        given = {name: np.full(c.batch_size, -1, np.int32) for name in classes}
        for row, i in enumerate(members):
            batch[row, : counts[i]], mask[row, : counts[i]] = points[i], True
            for name, values in classes.items():
                given[name][row] = values[i]
        yield batch, mask, given
