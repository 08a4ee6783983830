"""Distances of a batch's mixtures to the prior's draws: definitions, symmetries, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import mixture

from nvib_jax.objective import mmd, sliced_wasserstein
from nvib_jax.types import Mixture

REAL = jnp.ones(4, bool)


def points(seed, count=4, vectors=3, dim=5, shift=0.0):
    """Impulses with weights; a row's last vector is padding in every second row."""
    rng = np.random.default_rng(seed)
    mask = np.ones((count, vectors), bool)
    mask[::2, -1] = False
    mean, weights = rng.normal(size=(count, vectors, dim)) + shift, rng.normal(size=mask.shape)
    return Mixture(
        jnp.asarray(mean, jnp.float32), None, jnp.asarray(weights, jnp.float32), jnp.asarray(mask)
    )


def shuffled(m, seed=0):
    """The same sets, each in another order."""
    order = jax.vmap(lambda key: jax.random.permutation(key, m.mask.shape[1]))(
        jax.random.split(jax.random.key(seed), len(m.mask))
    )
    return jax.tree.map(lambda x: jax.vmap(lambda row, o: row[o])(x, order), m)


def by_hand(a, b, h, of):
    """The double loop in float64, over pairs of mixtures and of their vectors."""

    def sets(m):
        for i in range(len(m.mask)):
            there = np.asarray(m.present)[i]
            weights = np.exp(np.asarray(m.log_weights, np.float64)[i][there])
            yield np.asarray(m.mean, np.float64)[i][there], weights / weights.sum()

    def inner(p, q):
        square = np.square(p[0][:, None] - q[0][None]).sum(-1)
        return p[1] @ np.exp(-square / (2 * h * h)) @ q[1]

    def apart(p, q):
        return inner(p, p) + inner(q, q) - 2 * inner(p, q)

    a, b = list(sets(a)), list(sets(b))
    n, kernel = len(a), inner
    if of == "sets":
        scale = 2 * np.mean([apart(b[i], b[j]) for i in range(n) for j in range(n) if i != j])

        def kernel(p, q):
            return np.exp(-apart(p, q) / scale)

    return np.array([
        np.mean([
            kernel(a[i], a[j]) + kernel(b[i], b[j]) - kernel(a[i], b[j]) - kernel(a[j], b[i])
            for j in range(n) if j != i
        ])
        for i in range(n)
    ])  # fmt: skip


@pytest.mark.parametrize("of", ["sets", "vectors"])
def test_the_discrepancy_is_its_definition(of):
    a, b = points(0), points(1, shift=0.5)
    np.testing.assert_allclose(mmd(a, b, REAL, of=of), by_hand(a, b, 5**0.5, of), atol=1e-6)
    found = mmd(a, b, REAL, of=of, bandwidth=0.7)
    np.testing.assert_allclose(found, by_hand(a, b, 0.7, of), atol=1e-6)


@pytest.mark.parametrize("of", ["sets", "vectors"])
def test_a_set_has_no_order_and_equal_sets_no_discrepancy(of):
    a, b = points(0), points(1)
    np.testing.assert_allclose(mmd(shuffled(a), b, REAL, of=of), mmd(a, b, REAL, of=of), atol=1e-6)
    np.testing.assert_allclose(mmd(a, shuffled(a), REAL, of=of), 0.0, atol=1e-6)
    # And the order of the rows is that of the costs.
    back = jax.tree.map(lambda x: x[::-1], (a, b))
    np.testing.assert_allclose(mmd(*back, REAL, of=of)[::-1], mmd(a, b, REAL, of=of), atol=1e-6)


def test_the_closed_form_is_the_mean_over_points():
    """Components with variances, against 20 times 200 drawn points a mixture: four entries, each
    within 5 standard errors over the 20 (Student's t: false alarms below 1e-4 each).
    """
    a, b = mixture(batch=4, impulses=False), mixture(batch=4, impulses=False, seed=7)
    rng = np.random.default_rng(0)

    def drawn(m):
        weights = np.where(m.present, np.exp(np.asarray(m.log_weights, np.float64)), 0.0)
        x = []
        for i in range(4):
            which = rng.choice(weights.shape[1], 200, p=weights[i] / weights[i].sum())
            mean, spread = np.asarray(m.mean)[i][which], np.asarray(m.log_variance)[i][which]
            x.append(mean + np.exp(0.5 * spread) * rng.normal(size=mean.shape))
        x = jnp.asarray(np.stack(x), jnp.float32)
        return Mixture(x, None, jnp.zeros(x.shape[:2]), jnp.ones(x.shape[:2], bool))

    run = jax.jit(lambda a, b: mmd(a, b, REAL, of="vectors"))
    found = np.array([run(drawn(a), drawn(b)) for _ in range(20)])
    error = found.std(0, ddof=1) / 20**0.5
    assert (np.abs(found.mean(0) - mmd(a, b, REAL, of="vectors")) < 5 * error).all()


def test_sets_are_told_apart_where_their_vectors_are_alike():
    """Two signs that agree, or do not: the vectors are distributed alike, the sets are not."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-2.0, 2.0], (200, 2, 1))
    alike = np.repeat(signs[:, :1], 2, axis=1)
    a, b = (
        Mixture(jnp.asarray(x, jnp.float32), None, jnp.zeros((200, 2)), jnp.ones((200, 2), bool))
        for x in (alike, signs)
    )
    real = jnp.ones(200, bool)
    assert abs(float(mmd(a, b, real, of="vectors").mean())) < 0.02
    assert float(mmd(a, b, real, of="sets").mean()) > 0.04


@pytest.mark.parametrize("distance", ["mmd", "sliced"])
def test_rows_that_do_not_count_are_not_read(distance):
    a, b = points(0), points(1)
    real = jnp.array([True, False, True, True])
    broken = dataclasses.replace(a, mean=a.mean.at[1].set(9.0))

    def cost(a):
        if distance == "mmd":
            return mmd(a, b, real)
        return sliced_wasserstein(a, b, real, jax.random.key(0))

    found = cost(a)
    np.testing.assert_array_equal(found, cost(broken))
    assert found[1] == 0
    few = jax.tree.map(lambda x: x[np.array([0, 2, 3])], (a, b))
    if distance == "mmd":
        wanted = mmd(*few, jnp.ones(3, bool))
    else:
        wanted = sliced_wasserstein(*few, jnp.ones(3, bool), jax.random.key(0))
    np.testing.assert_allclose(found[np.array([0, 2, 3])], wanted, atol=1e-6)
    alone = mmd(a, b, jnp.array([True, False, False, False]))
    np.testing.assert_array_equal(alone, 0)


def test_the_sliced_distance_against_sorted_points():
    """Equal weights and numbers: the levels are the points, and the distance is that of sorts."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 8, 3)).astype(np.float32)
    a, b = (
        Mixture(jnp.asarray(z), None, jnp.zeros((4, 8)), jnp.ones((4, 8), bool)) for z in (x, y)
    )
    key = jax.random.key(0)
    found = sliced_wasserstein(a, b, REAL, key, directions=6, levels=32)
    ways = np.asarray(jax.random.normal(key, (6, 3), jnp.float32))
    ways = ways / np.linalg.norm(ways, axis=1, keepdims=True)
    sorts = [np.sort(z.reshape(-1, 3) @ ways.T, axis=0) for z in (x, y)]
    np.testing.assert_allclose(found, np.square(sorts[0] - sorts[1]).mean(), rtol=1e-5)
    # A vector of half the weight, twice, is that vector.
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x], axis=1), a)
    np.testing.assert_allclose(
        sliced_wasserstein(twice, b, REAL, key, directions=6, levels=32), found, rtol=1e-4
    )
    np.testing.assert_allclose(sliced_wasserstein(a, shuffled(a), REAL, key), 0.0, atol=1e-10)


@pytest.mark.parametrize("distance", ["mmd", "sliced"])
def test_descending_the_gradient_brings_them_together(distance):
    b = points(1, count=16, dim=2)
    real, key = jnp.ones(16, bool), jax.random.key(0)
    start = points(0, count=16, dim=2, shift=2.0)

    def cost(mean):
        a = dataclasses.replace(start, mean=mean)
        if distance == "mmd":
            return jnp.mean(mmd(a, b, real))
        return jnp.mean(sliced_wasserstein(a, b, real, key))

    run, mean = jax.jit(jax.value_and_grad(cost)), start.mean
    first = float(run(mean)[0])
    rate = 10.0 if distance == "mmd" else 5.0
    for _ in range(60):
        last, gradient = run(mean)
        assert np.isfinite(gradient).all()
        mean = mean - rate * gradient
    assert float(last) < 0.3 * first
    np.testing.assert_array_equal(mean[::2, -1], start.mean[::2, -1])  # padding stays


def test_what_does_not_fit():
    a, b = points(0), points(1)
    with pytest.raises(ValueError, match="of is 'words'; wanted"):
        mmd(a, b, REAL, of="words")
    with pytest.raises(ValueError, match=r"real"):
        mmd(a, b, jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"b\.mean"):
        mmd(a, points(1, dim=4), REAL)
    spread = dataclasses.replace(a, log_variance=a.mean)
    with pytest.raises(ValueError, match="a has variances; wanted impulses"):
        sliced_wasserstein(spread, b, REAL, jax.random.key(0))
