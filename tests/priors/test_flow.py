"""Flow matching on sets: the law of its samples, its density, and what permutations do to it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nvib_jax.models.params import merge, split
from nvib_jax.priors.config import PriorConfig, Sampling
from nvib_jax.priors.densities import SetFlow, VectorGaussians
from nvib_jax.priors.flow import integrate, log_density, matching_loss
from nvib_jax.priors.network import SetTransformer

SIZE, WIDTH = 3, 2
THERE = jnp.ones((4, SIZE), bool)


def covariance():
    """Of sets of three vectors of R^2 with a common part, which makes them exchangeable."""
    between = 0.3 * np.eye(SIZE) + 0.5 * np.ones((SIZE, SIZE))
    return np.kron(between, np.array([[1.0, 0.4], [0.4, 0.6]]))


def best_velocity(x, t):
    """The velocity that minimises the loss for sets with `covariance`, in closed form.

    x_t ~ N(0, (1 - t)^2 I + t^2 C)    v(x, t) = (t C - (1 - t) I) ((1 - t)^2 I + t^2 C)^-1 x
    """
    c, one = jnp.asarray(covariance(), jnp.float32), jnp.eye(SIZE * WIDTH, dtype=jnp.float32)
    t = t[:, None, None]
    c, one = c[None], one[None]
    blurred = (1 - t) ** 2 * one + t**2 * c
    flat = x.reshape(x.shape[0], -1, 1)
    return ((t * c - (1 - t) * one) @ jnp.linalg.solve(blurred, flat)).reshape(x.shape)


def true_log_density(x, blur=0.0):
    c = covariance() + blur**2 * np.eye(SIZE * WIDTH)
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    _, log_det = np.linalg.slogdet(2 * math.pi * c)
    return -0.5 * (log_det + np.einsum("bi,ij,bj->b", flat, np.linalg.inv(c), flat))


def some_sets(count, seed=0):
    root = np.linalg.cholesky(covariance())
    flat = np.random.default_rng(seed).normal(size=(count, SIZE * WIDTH)) @ root.T
    return jnp.asarray(flat.reshape(count, SIZE, WIDTH), jnp.float32)


def test_the_density_of_a_known_distribution():
    x = some_sets(4)
    found = {n: log_density(best_velocity, x, THERE, steps=n) for n in (10, 40)}
    errors = {n: np.abs(found[n] - true_log_density(x)).max() for n in found}
    assert errors[40] < 5e-3
    assert 8 < errors[10] / errors[40] < 40  # second order: sixteen times smaller


def test_the_estimated_divergence_is_unbiased():
    """Over 400 estimates; a mean beyond 5 of its standard errors is one of a million."""
    x = jnp.tile(some_sets(1), (400, 1, 1))
    there = jnp.ones((400, SIZE), bool)
    estimates = log_density(best_velocity, x, there, steps=10, key=jax.random.key(0))
    exact = log_density(best_velocity, x[:1], there[:1], steps=10)[0]
    error = jnp.std(estimates) / 20
    assert error > 1e-3  # it is an estimate
    assert abs(jnp.mean(estimates) - exact) < 5 * error
    fewer = log_density(best_velocity, x, there, steps=10, key=jax.random.key(1), probes=16)
    assert jnp.std(fewer) < 0.5 * jnp.std(estimates)


def test_samples_have_the_covariance():
    """Of 20,000 samples; an entry beyond .08 is 5 standard errors or more."""
    noise = jax.random.normal(jax.random.key(0), (20_000, SIZE, WIDTH), jnp.float32)
    x = integrate(best_velocity, noise, steps=20, method="midpoint").reshape(len(noise), -1)
    np.testing.assert_allclose(np.cov(x.T), covariance(), atol=0.08)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2)])
def test_orders_of_the_methods(method, order):
    """dx/dt = x from 1 gives e."""
    one = jnp.ones((1, 1, 1), jnp.float32)
    errors = [
        abs(float(integrate(lambda x, t: x, one, steps=n, method=method)[0, 0, 0]) - math.e)
        for n in (4, 16)
    ]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(order, abs=0.25)


def test_the_loss_of_a_point_is_zero_for_its_velocity():
    """All data at 3: v = (3 - x) / (1 - t) has no error, and padding counts for nothing."""
    data = jnp.full((5, SIZE, WIDTH), 3.0, jnp.float32)
    mask = THERE[:1].repeat(5, 0).at[:, 2].set(False)

    def velocity(x, t):
        found = (3.0 - x) / (1 - t)[:, None, None]
        return jnp.where(mask[..., None], found, 99.0)

    assert matching_loss(velocity, data, mask, jax.random.key(0)) < 1e-6
    wrong = matching_loss(lambda x, t: velocity(x, t) + 2.0, data, mask, jax.random.key(0))
    assert wrong == pytest.approx(4.0, rel=1e-3)


def network(seed=0):
    """A network whose every parameter is drawn, because a fresh one is 0 whatever it sees."""
    sizes = {"dim": 16, "heads": 2, "hidden": 32, "layers": 2}
    module = SetTransformer(WIDTH, 6, {"tense": 3}, **sizes, rngs=nnx.Rngs(seed))
    graph, params = split(module)
    keys = jax.random.split(jax.random.key(seed), len(params))
    drawn = [
        0.3 * jax.random.normal(k, p.shape, p.dtype)
        for k, p in zip(keys, params.values(), strict=True)
    ]
    return merge(graph, dict(zip(params, drawn, strict=True)))


def test_the_network_commutes_with_permutations():
    v, x = network(), jax.random.normal(jax.random.key(1), (2, 5, WIDTH), jnp.float32)
    t, mask = jnp.array([0.2, 0.7], jnp.float32), jnp.arange(5)[None] < jnp.array([[5], [3]])
    labels = {"tense": jnp.array([1, -1], jnp.int32)}
    order = jnp.array([2, 0, 1])
    permuted = x.at[:, :3].set(x[:, order])
    whole, other = v(x, t, mask, labels), v(permuted, t, mask, labels)
    np.testing.assert_allclose(other[:, :3], whole[:, order], atol=2e-5)
    assert jnp.abs(whole[:, 0] - whole[:, 1]).max() > 1e-2  # the vectors differ
    garbage = x.at[1, 3:].set(jnp.inf)  # and what is masked is not seen
    seen = v(jnp.where(jnp.isinf(garbage), 1e3, garbage), t, mask, labels)
    np.testing.assert_allclose(seen[1, :3], whole[1, :3], atol=2e-5)
    flow = {"steps": 1, "method": "euler"}
    densities = [
        log_density(lambda y, s: v(y, s, mask, labels), each, mask, **flow)
        for each in (x, permuted)
    ]
    np.testing.assert_allclose(densities[0], densities[1], rtol=1e-4)


def test_the_network_sees_time_number_and_label():
    v, x = network(), jax.random.normal(jax.random.key(1), (1, 3, WIDTH), jnp.float32)

    def of(t=0.3, there=3, label=1):
        mask = jnp.arange(3)[None] < there
        labels = {"tense": jnp.array([label], jnp.int32)}
        return v(x, jnp.array([t], jnp.float32), mask, labels)[0, 0]

    for other in (of(t=0.4), of(there=2), of(label=2), of(label=-1)):
        assert jnp.abs(other - of()).max() > 1e-2
    none = v(x, jnp.array([0.3], jnp.float32), jnp.ones((1, 3), bool))[0, 0]
    np.testing.assert_array_equal(none, of(label=-1))  # a label that is missing is not given


def test_guidance_goes_from_without_labels_to_with_them_and_on():
    config = PriorConfig(dim=16, heads=2, hidden=32, layers=1)
    flow = SetFlow(config, WIDTH, 6, {"tense": 3}, rngs=nnx.Rngs(0))
    flow.network = network()
    mask, key = jnp.ones((1, 2), bool), jax.random.key(0)
    labels = {"tense": jnp.array([1], jnp.int32)}

    def drawn(guidance, labels=labels):
        return flow.draw(mask, key, labels, Sampling(steps=1, method="euler", guidance=guidance))

    without = drawn(1.0, {})
    np.testing.assert_allclose(drawn(0.0), without, atol=1e-5)
    way, further = drawn(1.0) - without, drawn(2.0) - drawn(1.0)
    assert jnp.abs(way).max() > 0.05
    assert jnp.vdot(way, further) > 0.5 * jnp.linalg.norm(way) * jnp.linalg.norm(further)


def test_a_flow_that_is_fitted_has_the_density():
    """Of blurred points, of 400 held-out sets: the mean is within .1 nats of the truth, and its
    draws have the covariance, but that a draw is a mean and has less of the blur."""
    import optax

    config = PriorConfig(dim=32, heads=2, hidden=64, layers=2, noise=0.3)
    graph, params = split(SetFlow(config, WIDTH, SIZE, {}, rngs=nnx.Rngs(0)))
    steps = 1200
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    data, mask = some_sets(4096, seed=1), jnp.ones((256, SIZE), bool)

    def step(carry, key):
        params, state = carry
        chosen, loss_key = jax.random.split(key)
        batch = data[jax.random.randint(chosen, (256,), 0, len(data))]
        loss = lambda p: merge(graph, p).loss(batch, mask, loss_key, {})  # noqa: E731
        slopes = jax.grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(slopes, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda c, keys: jax.lax.scan(step, c, keys)[0])
    params, _ = run((params, optimizer.init(params)), jax.random.split(jax.random.key(0), steps))
    held, there = some_sets(400, seed=2), jnp.ones((400, SIZE), bool)
    held = held + 0.3 * jax.random.normal(jax.random.key(1), held.shape, jnp.float32)
    flow, how = merge(graph, params), Sampling(steps=20)
    found = flow.log_density(held, there, jax.random.key(2), how)
    missed = np.asarray(found) - true_log_density(held, 0.3)
    assert abs(missed.mean()) < 0.1 + 3 * missed.std() / 20
    assert np.corrcoef(found, true_log_density(held, 0.3))[0, 1] > 0.5  # one estimate a set
    drawn = flow.draw(jnp.ones((4000, SIZE), bool), jax.random.key(3), {}, how)
    c, one = covariance(), np.eye(SIZE * WIDTH)
    # The mean of x given x + .3 e has the covariance C (C + .09)^-1 C.
    wanted = c @ np.linalg.inv(c + 0.09 * one) @ c
    # An entry of 4,000 draws has a standard error of .02; the rest is what fitting left.
    found = np.cov(drawn.reshape(4000, -1).T)
    np.testing.assert_allclose(found, wanted, atol=0.2)
    np.testing.assert_allclose(np.trace(found), np.trace(wanted), rtol=0.18)


def test_gaussians_of_single_vectors():
    """Against the formula in float64, and 20,000 draws: means and covariances within .08."""
    config = PriorConfig(kind="gaussians", components=2)
    density = VectorGaussians(config, WIDTH, 6, {}, rngs=nnx.Rngs(0))
    density.logits[...] = jnp.array([0.3, -0.5], jnp.float32)
    density.roots[...] = jnp.array([[[0.2, 9.0], [0.4, -0.3]], [[0.0, 9.0], [-0.7, 0.5]]])
    lower = np.array([[[math.exp(0.2), 0], [0.4, math.exp(-0.3)]], [[1, 0], [-0.7, math.exp(0.5)]]])
    precisions = np.einsum("kji,kjl->kil", lower, lower)
    shares = np.exp([0.3, -0.5]) / np.exp([0.3, -0.5]).sum()
    means = np.asarray(density.means[...], np.float64)

    x = np.random.default_rng(0).normal(size=(2, 4, WIDTH))
    away = x[:, :, None] - means
    exponent = np.einsum("bski,kij,bskj->bsk", away, precisions, away)
    each = shares * np.sqrt(np.linalg.det(precisions)) / (2 * math.pi) * np.exp(-0.5 * exponent)
    mask = jnp.arange(4)[None] < jnp.array([[4], [2]])
    wanted = np.where(mask, np.log(each.sum(-1)), 0).sum(-1)
    found = density.log_density(jnp.asarray(x, jnp.float32), mask, jax.random.key(0), Sampling())
    np.testing.assert_allclose(found, wanted, rtol=1e-4)

    drawn = density.draw(jnp.ones((1, 20_000), bool), jax.random.key(1), {}, Sampling())[0]
    spread = np.linalg.inv(precisions) + np.einsum("ki,kj->kij", means, means)
    center = shares @ means
    wanted = np.einsum("k,kij->ij", shares, spread) - np.outer(center, center)
    np.testing.assert_allclose(drawn.mean(0), center, atol=0.08)
    np.testing.assert_allclose(np.cov(drawn.T), wanted, atol=0.08)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps is 0; wanted at least 1"),
        ({"method": "rk4"}, "method is 'rk4'"),
        ({"key": jax.random.key(0), "probes": 0}, "probes is 0"),
    ],
)
def test_wrong_ways_to_integrate(change, said):
    with pytest.raises(ValueError, match=said):
        log_density(best_velocity, some_sets(4), THERE, **{"steps": 2, **change})
