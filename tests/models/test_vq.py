"""VQ: the nearest code, its averages by hand, dead codes, the gradient through the quantiser."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from nvib_jax.config import ObjectiveConfig, TrainConfig
from nvib_jax.models.config import NVAEConfig
from nvib_jax.models.latents.vq import through
from nvib_jax.models.params import merge, split
from nvib_jax.training.codebook import averaged, revived
from nvib_jax.training.loss import loss_and_metrics
from nvib_jax.training.optimizer import make_optimizer

CODES = 8


@pytest.fixture(scope="module")
def latent():
    return tiny.model(kind="VQ", codes=CODES).latent


def encoded(latent, lengths=(6, 3, 1, 4)):
    x = jax.random.normal(jax.random.key(1), (len(lengths), 6, 16))
    return latent(x, jnp.arange(6)[None] < np.array(lengths)[:, None])


def test_the_nearest_code(latent):
    """Against all distances in float64."""
    z = jax.random.normal(jax.random.key(3), (5, 7, 16))
    book = np.asarray(latent.codebook[...], np.float64)
    far = np.square(np.asarray(z, np.float64)[..., None, :] - book).sum(-1)
    np.testing.assert_array_equal(latent.nearest(z), far.argmin(-1))


def test_the_decoder_reads_codes_alone(latent):
    """At a share of the vectors, in every form, and in training."""
    posterior = encoded(latent)
    book = np.asarray(latent.codebook[...])
    for mixture in (
        latent.draw(posterior, jax.random.key(0)),
        latent.read(posterior, "exact")[0],
        latent.read(posterior, "average", jax.random.key(0))[0],
    ):
        read = np.asarray(~jnp.isneginf(mixture.log_weights))
        np.testing.assert_array_equal(read.sum(-1), [3, 2, 1, 2])
        codes = np.asarray(latent.nearest(posterior.mean))[read]
        np.testing.assert_array_equal(np.asarray(mixture.mean)[read], book[codes])


@pytest.mark.parametrize("gradient", ["rotation", "straight_through"])
def test_the_gradient_through_the_quantiser(gradient):
    """Against the matrix in float64: the rotation that turns z to its code, and their sizes."""
    rng = np.random.default_rng(0)
    z, code, pull = rng.normal(size=(3, 5))
    with jax.enable_x64(True):
        out, back = jax.vjp(lambda z: through(z, jnp.asarray(code), gradient), jnp.asarray(z))
        got = np.asarray(back(jnp.asarray(pull))[0])
    np.testing.assert_array_equal(out, code)
    if gradient == "straight_through":
        np.testing.assert_array_equal(got, pull)
        return
    p, q = z / np.linalg.norm(z), code / np.linalg.norm(code)
    # Rodrigues' formula: turn the plane of p and q by their angle, leave all else.
    cos = p @ q
    across = (q - cos * p) / np.sqrt(1 - cos**2)
    plane = np.outer(across, p) - np.outer(p, across)
    turn = np.eye(5) + np.sqrt(1 - cos**2) * plane
    turn += (cos - 1) * (np.outer(p, p) + np.outer(across, across))
    np.testing.assert_allclose(turn @ p, q, atol=1e-12)
    np.testing.assert_allclose(turn @ turn.T, np.eye(5), atol=1e-12)
    size = np.linalg.norm(code) / np.linalg.norm(z)
    np.testing.assert_allclose(got, size * turn.T @ pull, rtol=1e-12)


def test_padding_has_a_finite_gradient():
    def loss(z):
        return jnp.sum(jnp.where(jnp.arange(2)[:, None] < 1, through(z, codes, "rotation"), 0.0))

    codes = jnp.ones((2, 3))
    found = jax.grad(loss)(jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    assert np.isfinite(found).all()
    assert (found[1] == 0).all()


def test_the_gradients_of_the_cost_are_counts_and_sums(latent):
    """c e - s for the codes and -c for their use, however a batch is weighed."""
    posterior = encoded(latent)
    graph, params = split(latent)
    weight = jnp.array([1.0, 0.5, 2.0, 1.0])
    grads = jax.grad(lambda p: jnp.sum(weight * merge(graph, p).costs(posterior)["codebook"]))(
        params
    )
    kept = np.asarray(posterior.present.at[:, 0].set(False))
    codes, z = np.asarray(latent.nearest(posterior.mean))[kept], np.asarray(posterior.mean)[kept]
    each = np.broadcast_to(np.asarray(weight)[:, None], kept.shape)[kept]
    counts, sums = np.zeros(CODES), np.zeros((CODES, 16))
    np.add.at(counts, codes, each)
    np.add.at(sums, codes, each[:, None] * z)
    book = np.asarray(params["codebook"])
    np.testing.assert_allclose(grads["code_use"], -counts, rtol=1e-6)
    np.testing.assert_allclose(grads["codebook"], counts[:, None] * book - sums, atol=1e-5)
    moved = {name for name, grad in grads.items() if bool(jnp.any(grad != 0))}
    assert moved == {"codebook", "code_use"}


def test_the_averages_are_the_recurrence():
    """n <- g n + (1 - g) c and m <- g m + (1 - g) s by hand; the codes are m / n."""
    rng, decay = np.random.default_rng(0), 0.9
    use, total = np.zeros(4), np.zeros((4, 3))
    codes = np.asarray(rng.normal(size=(4, 3)), np.float32)
    first, e, n = codes.copy(), jnp.asarray(codes), jnp.zeros(4)
    for step in range(20):
        count = np.array([3.0, step % 2, step == 7, 0.0])
        sums = count[:, None] * rng.normal(size=(4, 3))
        use, total = decay * use + (1 - decay) * count, decay * total + (1 - decay) * sums
        pull = jnp.asarray(count[:, None] * np.asarray(e) - sums, jnp.float32)
        e, n = averaged(e, n, pull, jnp.asarray(-count, jnp.float32), decay)
    np.testing.assert_allclose(n, use, rtol=1e-5)
    np.testing.assert_allclose(e[:3], total[:3] / use[:3, None], rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(e[3], first[3])  # never taken


def test_dead_codes_are_revived():
    """Each beside another of the most used codes, which shares its use; the others stay."""
    codes = jax.random.normal(jax.random.key(0), (6, 16))
    use = jnp.array([0.0, 4.0, 1.0, 1e-6, 3.0, 0.02])
    book, now = revived(jax.random.key(1), codes, use)
    np.testing.assert_allclose(now, [2.0, 2.0, 0.5, 1.5, 1.5, 0.5])
    np.testing.assert_array_equal(book[jnp.array([1, 2, 4])], codes[jnp.array([1, 2, 4])])
    for dead, source in ((0, 1), (3, 4), (5, 2)):
        apart = float(jnp.linalg.norm(book[dead] - codes[source]) / jnp.linalg.norm(codes[source]))
        assert 0.001 < apart < 0.03
    # Fewer living than dead: as many come back, and with none alive nothing happens.
    few = revived(jax.random.key(1), codes, jnp.array([0.0, 0.0, 8.0, 0.0, 0.0, 0.0]))[1]
    np.testing.assert_allclose(few, [4.0, 0.0, 4.0, 0.0, 0.0, 0.0])
    same, none = revived(jax.random.key(1), codes, jnp.zeros(6))
    np.testing.assert_array_equal(same, codes)
    assert not none.any()


def test_a_step_moves_the_codes_by_their_averages_alone():
    """Not clipped, decayed or scheduled with the rest, which goes as it would without them."""
    model = NVAEConfig(**tiny.SMALL, kind="VQ", code_decay=0.75)
    settings = TrainConfig(weight_decay=0.5, clip=1e-3, warmup_steps=0, learning_rate=0.1)
    params = {
        "latent.codebook": jnp.ones((2, 3)),
        "latent.code_use": jnp.ones(2),
        "kernel": jnp.ones((2, 2)),
    }
    grads = {
        "latent.codebook": jnp.array([[4.0] * 3, [0.0] * 3]),
        "latent.code_use": jnp.array([-5.0, 0.0]),
        "kernel": jnp.full((2, 2), 7.0),
    }
    optimizer, plain = make_optimizer(settings, model), make_optimizer(settings)
    with jax.numpy_dtype_promotion("standard"):
        found, _ = optimizer.update(grads, optimizer.init(params), params)
        zeros = {n: g if n == "kernel" else jnp.zeros_like(g) for n, g in grads.items()}
        wanted, _ = plain.update(zeros, plain.init(params), params)
    new = optax.apply_updates(params, found)
    np.testing.assert_allclose(new["latent.code_use"], [2.0, 0.75])
    np.testing.assert_allclose(new["latent.codebook"], [[1 - 0.25 / 2 * 4] * 3, [1.0] * 3])
    np.testing.assert_array_equal(found["kernel"], wanted["kernel"])


def test_the_prior_over_codes_is_one(latent):
    """Probabilities of all sentences of two codes add up to 1; the rest of the row is not read."""
    pairs = jnp.stack(jnp.meshgrid(*[jnp.arange(CODES)] * 2, indexing="ij"), -1).reshape(-1, 2)
    padded = jnp.pad(pairs, ((0, 0), (0, 2)), constant_values=3)
    mask = jnp.broadcast_to(jnp.arange(4)[None] < 2, padded.shape)
    log_p = latent.code_prior.log_prob(padded, mask)
    assert float(jnp.sum(jnp.exp(log_p))) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(
        log_p, latent.code_prior.log_prob(padded.at[:, 2:].set(1), mask), rtol=1e-5
    )
    none = latent.code_prior.log_prob(padded, jnp.zeros_like(mask))
    np.testing.assert_array_equal(none, 0)


def test_codes_are_drawn_as_likely_as_they_are(latent):
    """Shares of 4,000 draws of two codes within 5 standard errors: false alarms below 1e-4.

    How many are left counts for much here, so that a draw that is told otherwise is found out.
    """
    graph, params = split(latent.code_prior)
    prior = merge(graph, params | {"left.kernel": 20 * params["left.kernel"]})
    codes = jax.jit(lambda key: prior.draw(key, jnp.full(4000, 2), most=3))(jax.random.key(0))
    assert codes.shape == (4000, 3)
    pairs = jnp.stack(jnp.meshgrid(*[jnp.arange(CODES)] * 2, indexing="ij"), -1).reshape(-1, 2)
    padded = jnp.pad(pairs, ((0, 0), (0, 1)))
    mask = jnp.broadcast_to(jnp.arange(3)[None] < 2, padded.shape)
    p = np.exp(np.asarray(prior.log_prob(padded, mask), np.float64))
    seen = np.bincount(np.asarray(codes[:, 0] * CODES + codes[:, 1]), minlength=CODES**2) / 4000
    assert (np.abs(seen - p) < 5 * np.sqrt(p * (1 - p) / 4000)).all()


def test_a_draw_of_the_prior_is_of_the_codebook(latent):
    counts = jnp.array([1, 3, 6])
    drawn = latent.sample_prior(jax.random.key(0), counts, most=6)
    np.testing.assert_array_equal(jnp.sum(~jnp.isneginf(drawn.log_weights), -1), counts)
    np.testing.assert_array_equal(jnp.sum(drawn.mask, -1), counts + 1)
    book = latent.codebook[...]
    np.testing.assert_array_equal(drawn.mean[:, 1:], book[latent.nearest(drawn.mean[:, 1:])])


def test_the_bound_pays_for_the_codes(latent):
    """The ratio of a draw is minus the KL, and that of other codes is infinite."""
    posterior = encoded(latent)
    drawn = latent.draw(posterior, jax.random.key(0))
    ratio, cost = latent.log_density_ratio(drawn, posterior), latent.costs(posterior)["codes"]
    np.testing.assert_allclose(ratio, -cost, rtol=1e-6)
    assert (cost > 0).all()
    other = dataclasses.replace(drawn, mean=drawn.mean.at[0, 2].set(latent.codebook[...][0]))
    codes = latent.nearest(posterior.mean)[0, 2]
    assert int(codes) != 0
    found = latent.log_density_ratio(other, posterior)
    assert np.isposinf(found[0])
    np.testing.assert_allclose(found[1:], ratio[1:], rtol=1e-6)


def test_the_encoder_is_held_to_its_codes_and_the_prior_gives_it_no_gradient(latent):
    posterior = encoded(latent)

    def gradient(name):
        def cost(mean):
            changed = dataclasses.replace(posterior, mean=mean)
            return jnp.sum(latent.costs(changed)[name])

        return np.asarray(jax.grad(cost)(posterior.mean))

    kept = np.asarray(posterior.present.at[:, 0].set(False))[..., None]
    code = latent.codebook[...][latent.nearest(posterior.mean)]
    wanted = np.where(kept, 2 * 0.25 * (np.asarray(posterior.mean) - code), 0.0)
    np.testing.assert_allclose(gradient("commitment"), wanted, atol=1e-6)
    assert not gradient("codebook").any()
    assert not gradient("codes").any()


def test_it_learns_a_batch_by_heart():
    """A hundred steps: the codes come to use, the vectors to their codes, the text comes back."""
    module, data = tiny.model(kind="VQ", codes=32, stride_share=1.0), tiny.batch()
    graph, params = split(module)
    optimizer = make_optimizer(
        TrainConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant"), module.config
    )
    objective = ObjectiveConfig(units="elbo")

    @jax.jit
    def step(params, state, key):
        def loss(p):
            return loss_and_metrics(merge(graph, p), data, key, jnp.int32(0), objective)

        grads, metrics = jax.grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, metrics

    state, found = optimizer.init(params), []
    for i in range(100):
        params, state, metrics = step(params, state, jax.random.key(i))
        found.append({n: float(a) / float(c) for n, (a, c) in metrics.items()})
    assert found[-1]["cross_entropy"] < 0.1 < found[0]["cross_entropy"]
    assert found[-1]["kl_codes"] < 0.5 * found[0]["kl_codes"]
    assert found[-1]["commitment"] < 0.1 * found[0]["commitment"]
    assert int(jnp.sum(params["latent.code_use"] > 0)) >= 10
