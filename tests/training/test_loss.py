"""What the KLs cost at a step: weights, annealing, budgets; and the noise against collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import nvib_jax as nvib
from nvib_jax.config import ObjectiveConfig
from nvib_jax.models.special_ids import PAD, UNK, SpecialIds
from nvib_jax.models.teacher_forcing import blanked
from nvib_jax.training.loss import loss_and_metrics, weighted

MASK = jnp.array([[True] * 4, [True, True, False, False]])
KL_G, KL_D = jnp.float32([8.0, 6.0]), jnp.float32([2.0, 1.0])


def cost(step=0, **options):
    objective = ObjectiveConfig(**{"units": "elbo", "lambda_gaussian": 1.0, **options})
    costs = {"gaussian": KL_G, "dirichlet": KL_D}
    return weighted(costs, jnp.sum(MASK, axis=-1), jnp.int32(step), objective, width=2)


def test_units():
    np.testing.assert_allclose(cost(), KL_G + KL_D)
    np.testing.assert_allclose(cost(lambda_gaussian=0.5, lambda_dirichlet=3.0), [10.0, 6.0])
    # KL_G / (S D) + KL_D / S, where S counts the tokens and the prior.
    np.testing.assert_allclose(cost(units="published"), [8 / 10 + 2 / 5, 6 / 6 + 1 / 3], rtol=1e-6)


def test_costs_are_weighed_by_the_first_part_of_their_name():
    """A posterior of a layer costs what the only one does; a cost of a model's own has weight 1."""
    ramp = ObjectiveConfig(lambda_gaussian=0.5, anneal="linear", anneal_steps=10)
    tokens, step = jnp.sum(MASK, axis=-1), jnp.int32(5)

    def of(**costs):
        named = {name.replace("_", "/"): value for name, value in costs.items()}
        return weighted(named, tokens, step, ramp, width=2)

    np.testing.assert_array_equal(of(gaussian_3=KL_G), of(gaussian=KL_G))
    np.testing.assert_array_equal(of(size=KL_G), KL_G)
    assert (of(gaussian=KL_G) < KL_G).all()
    np.testing.assert_allclose(
        of(gaussian_0=KL_G, gaussian_1=KL_G, size=KL_D), 2 * of(gaussian=KL_G) + KL_D, rtol=1e-6
    )


def test_annealing_of_both_or_of_one():
    ramp = {"anneal": "linear", "anneal_steps": 10}
    np.testing.assert_allclose(cost(5, **ramp), 0.5 * (KL_G + KL_D))
    np.testing.assert_allclose(cost(5, **ramp, dirichlet_from_start=True), 0.5 * KL_G + KL_D)


def test_free_bits_cost_nothing_but_what_they_are():
    np.testing.assert_allclose(cost(free_gaussian=2.5), np.maximum(KL_G, [10.0, 5.0]) + KL_D)
    np.testing.assert_allclose(cost(free_dirichlet=1.0), KL_G + jnp.float32([4.0, 2.0]))


def test_capacities_grow():
    options = {"capacity_gaussian": 2.0, "capacity_dirichlet": 0.5, "capacity_steps": 100}
    np.testing.assert_allclose(cost(0, **options), KL_G + KL_D)
    np.testing.assert_allclose(cost(50, **options), [4.0 + 1.0, 4.0 + 0.5])
    np.testing.assert_allclose(cost(200, **options), [0.0 + 0.0, 2.0 + 0.0])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_words_are_blanked_and_padding_is_not(share):
    """10,000 words; 5 standard errors: false alarms below 1e-6."""
    tokens = jnp.where(jnp.arange(100)[None] < 50, 7, PAD) * jnp.ones((200, 1), jnp.int32)
    out = blanked(tokens, share, jax.random.key(0), SpecialIds())
    np.testing.assert_array_equal(out[:, 50:], PAD)
    blank = np.asarray(out[:, :50] == UNK)
    assert abs(blank.mean() - share) <= 5 * (share * (1 - share) / 1e4) ** 0.5
    np.testing.assert_array_equal(out[:, :50][~blank], 7)


def loss(train=True, module=None, **options):
    module = module or tiny.model()
    objective = ObjectiveConfig(**{"units": "elbo", **options})
    run = jax.jit(lambda: loss_and_metrics(
        module, tiny.batch(), jax.random.key(0), jnp.int32(3), objective, train=train
    ))  # fmt: skip
    value, metrics = run()
    return float(value), {name: float(a) / float(b) for name, (a, b) in metrics.items()}


def test_noise_is_for_training_only():
    noise = {"encoder_noise": 1.0, "word_dropout": 1.0}
    assert loss(**noise)[0] != loss()[0]
    assert loss(train=False, **noise)[0] == loss(train=False)[0]
    # Each is its own: the encoder's changes the posterior, the decoder's the cross-entropy alone.
    plain, encoder, decoder = (
        loss(**o)[1] for o in ({}, {"encoder_noise": 1.0}, {"word_dropout": 1.0})
    )
    assert encoder["kl_gaussian"] != plain["kl_gaussian"]
    assert decoder["kl_gaussian"] == plain["kl_gaussian"]
    assert decoder["cross_entropy"] != plain["cross_entropy"]


def test_alpha_delta_goes_from_one_value_to_another():
    """Of the Dirichlet KL alone, in training alone; the prior of the model stays."""
    fixed = [loss(module=tiny.model(alpha_delta=d))[1]["kl_dirichlet"] for d in (0.3, 0.6, 0.9)]
    moved = loss(alpha_delta_start=0.9, alpha_delta_steps=6)[1]["kl_dirichlet"]  # step 3 of 6
    assert len(set(fixed)) == 3
    like = loss_like(0.6)
    assert moved == pytest.approx(like, rel=1e-5)
    still = loss(train=False, alpha_delta_start=0.9, alpha_delta_steps=6)[1]["kl_dirichlet"]
    assert still == loss(train=False)[1]["kl_dirichlet"]


def loss_like(alpha_delta):
    """KL_D of the module with alpha_delta .3 against a prior with another."""
    module, data = tiny.model(), tiny.batch()
    posterior = module.encode(data["tokens"], data["mask"])
    prior = nvib.Prior.standard(16, alpha_delta=alpha_delta)
    return float(nvib.kl_dirichlet(posterior, prior).mean())


def test_a_vector_has_its_price():
    module = tiny.model(pseudo_count="relu", initial_kept=0.5)
    plain, priced = (loss(module=module, vector_price=p)[0] for p in (0.0, 2.0))
    data = tiny.batch()
    posterior = module.encode(data["tokens"], data["mask"])
    vectors = int(jnp.sum(~jnp.isneginf(posterior.log_alpha[:, 1:]) & data["mask"]))
    tokens = int(data["mask"].sum()) + 4
    assert 0 < vectors < tokens - 4
    assert priced - plain == pytest.approx(2 * vectors / tokens, rel=1e-4)


def test_some_vectors_are_free():
    """A fifth of the tokens' number: the price is for those beyond, sentence by sentence."""
    module, data = tiny.model(pseudo_count="relu", initial_kept=0.5), tiny.batch()
    posterior = module.encode(data["tokens"], data["mask"])
    vectors = np.asarray(jnp.sum(~jnp.isneginf(posterior.log_alpha[:, 1:]) & data["mask"], axis=-1))
    tokens = np.asarray(data["mask"].sum(axis=-1))
    assert (vectors > 0.2 * tokens).any()
    assert (vectors < 0.2 * tokens).any()
    plain = loss(module=module)[0]
    priced = loss(module=module, vector_price=2.0, free_vectors=0.2)[0]
    paid = np.maximum(vectors, 0.2 * tokens).sum() / (tokens.sum() + 4)
    assert priced - plain == pytest.approx(2 * paid, rel=1e-4)
