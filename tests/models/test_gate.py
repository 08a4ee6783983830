"""The gate that keeps vectors by information: its rules by hand, what it sees, what trains it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nvib_jax.config import ObjectiveConfig
from nvib_jax.models.gate import LIMIT_RATE
from nvib_jax.models.nvae import NVAE, NVAEConfig
from nvib_jax.models.params import merge, split
from nvib_jax.models.summaries import kept

GATES = ("surprise", "pace")


def gated(rule: str, limit: float = 2.0, **options) -> NVAE:
    """A model with the limit at so many nats, for which an untrained gate finds some surprises."""
    model = tiny.model(gate=rule, **options)
    model.gate.limit[...] = jnp.float32(np.log1p(limit) / LIMIT_RATE)
    return model


def test_the_rules_by_hand():
    surprise = jnp.asarray([[1.0, 3.0, 0.5, 2.5, 4.0, 1.0, 0.0]])
    mask = jnp.asarray([[True] * 6 + [False]])
    keeps, parts = tiny.model(gate="surprise").gate.divide(surprise, jnp.float32(2.0), mask)
    np.testing.assert_array_equal(keeps[0], [0, 1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(parts[0, :6], [0, 0, 1, 1, 2, 2])  # the rest is the last one's
    # The sums 1, 4, 4.5, 7, 10, 11 pass 1.5, 4.5, 7.5 and 10.5: every three nats, from half of
    # three. The middles .5, 2.5, 4.25, 5.75, 8.5 and 10.5 are in the 1st, 1st, 2nd ... three nats.
    keeps, parts = tiny.model(gate="pace").gate.divide(surprise, jnp.float32(3.0), mask)
    np.testing.assert_array_equal(keeps[0], [0, 1, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(parts[0, :6], [0, 0, 1, 1, 2, 3])


def test_pace_has_a_vector_for_every_so_many_nats():
    """As many as there are times four nats, and each in its own part."""
    surprise = jax.random.uniform(jax.random.key(0), (50, 40), maxval=3.0)
    mask = jnp.ones(surprise.shape, bool)
    keeps, parts = tiny.model(gate="pace").gate.divide(surprise, jnp.float32(4.0), mask)
    wanted = np.floor(0.5 + np.asarray(surprise, np.float64).sum(1) / 4.0)
    np.testing.assert_array_equal(keeps.sum(1), wanted)
    for row, part, count in zip(np.asarray(keeps), np.asarray(parts), wanted, strict=True):
        np.testing.assert_array_equal(part[row], np.arange(count))
        assert part.max() == count - 1
        assert (np.diff(part) >= 0).all()


def test_surprise_is_minus_a_log_probability():
    gate = tiny.model(gate="surprise").gate
    tokens = jnp.tile(jnp.arange(tiny.VOCAB, dtype=jnp.int32)[:, None], (1, 3))
    tokens = tokens.at[:, :2].set(jnp.asarray([5, 7]))  # one history, every next word
    surprise = gate.surprise(tokens, jnp.ones(tokens.shape, bool))
    assert float(jnp.sum(jnp.exp(-surprise[:, 2]))) == pytest.approx(1.0, abs=1e-5)


def test_surprise_depends_on_a_few_words_and_on_no_place():
    gate = tiny.model(gate="pace", gate_window=2).gate
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(4, tiny.VOCAB, (1, 12)), jnp.int32)
    mask = jnp.ones(tokens.shape, bool)
    before, after = (
        gate.surprise(t, mask)[0] for t in (tokens, tokens.at[0, 5].set((tokens[0, 5] + 1) % 20))
    )
    changed = np.flatnonzero(np.abs(before - after) > 1e-6)
    np.testing.assert_array_equal(changed, [5, 6, 7])
    again = jnp.concatenate([tokens, tokens], axis=1)
    twice = gate.surprise(again, jnp.ones(again.shape, bool))[0]
    np.testing.assert_allclose(twice[14:], before[2:], atol=1e-5)


@pytest.mark.parametrize("rule", GATES)
def test_the_model_keeps_what_the_gate_keeps(rule):
    model, batch = gated(rule, 4.0), tiny.batch()
    posterior = model.encode(batch["tokens"], batch["mask"])
    surprise = model.gate.surprise(batch["tokens"], batch["mask"])
    wanted, _ = model.gate.divide(surprise, jnp.float32(4.0), batch["mask"])
    assert 0 < wanted.sum() < batch["mask"].sum()
    np.testing.assert_array_equal(kept(posterior, 0.0), wanted)
    assert posterior.present[:, 0].all()  # the prior's


@pytest.mark.parametrize("rule", GATES)
def test_padding_changes_nothing(rule):
    model, batch = gated(rule, 4.0), tiny.batch()
    tokens, mask = batch["tokens"], batch["mask"]
    noise = jnp.where(mask, tokens, 9)
    for a, b in zip(
        jax.tree.leaves(model.encode(tokens, mask)),
        jax.tree.leaves(model.encode(noise, mask)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rule", GATES)
def test_gate_and_autoencoder_take_no_gradient_from_each_other(rule):
    model, batch = gated(rule), tiny.batch()
    graph, params = split(model)

    def terms(params):
        return merge(graph, params).terms(
            batch, jax.random.key(1), step=jnp.int32(0), train=True, objective=ObjectiveConfig()
        )

    def own(params):
        costs = terms(params).costs
        return jnp.sum(costs["surprise"] + costs["limit"])

    def rest(params):
        found = terms(params)
        return found.nll + jnp.sum(found.costs["gaussian"] + found.costs["dirichlet"])

    def moved(function):
        gradient = jax.jit(jax.grad(function))(params)
        return {name for name, g in gradient.items() if np.abs(g).max() > 0}

    marks = {"gate.part", "gate.stays"}  # inputs of the encoder, and trained with it
    gate = {name for name in params if name.startswith("gate.")} - marks
    assert moved(own) == gate
    assert moved(rest) & {name for name in params if name.startswith("gate.")} == marks


@pytest.mark.parametrize("rule", GATES)
def test_the_limit_finds_its_share(rule):
    gate = gated(rule, 0.0, gate_share=0.3).gate
    graph, params = split(gate)
    mask = jnp.arange(20)[None] < jnp.asarray([20, 12, 7, 15] * 16)[:, None]
    tokens = jax.random.randint(jax.random.key(0), mask.shape, 4, tiny.VOCAB)

    @jax.jit
    def step(limit):
        def cost(limit):
            return jnp.sum(merge(graph, {**params, "limit": limit}).costs(tokens, mask)["limit"])

        value, slope = jax.value_and_grad(cost)(limit)
        return value, limit - 2e-3 * jnp.sign(slope)

    limit = params["limit"]
    for _ in range(150):
        value, limit = step(limit)
        assert value == 0
    gate.limit[...] = limit
    there, _ = gate(tokens, mask)
    assert float(there.sum() / mask.sum()) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("rule", GATES)
@pytest.mark.parametrize("keep", [3, 100, 0.3, [2, 5, 1, 4]])
def test_a_reader_asks_for_a_number_or_a_share(rule, keep):
    """The sum of min(s, L) is the number times L, or a limit leaves that many above it."""
    gate = tiny.model(gate=rule, max_length=12).gate
    rng, lengths = np.random.default_rng(3), np.asarray([12, 7, 1, 5])
    mask = jnp.arange(12)[None] < jnp.asarray(lengths)[:, None]
    tokens = jnp.asarray(rng.integers(4, tiny.VOCAB, mask.shape), jnp.int32)
    asked = jnp.asarray(keep) if isinstance(keep, list) else keep
    there, _ = gate(tokens, mask, asked)
    assert not (there & ~mask).any()
    count = np.ceil(keep * lengths - 1e-4) if isinstance(keep, float) else np.asarray(keep)
    np.testing.assert_array_equal(there.sum(1), np.minimum(count, lengths))


def test_the_encoder_is_told_whose_part_a_word_is_in():
    gate = tiny.model(gate="pace").gate
    keeps, parts = jnp.asarray([[False, True, True]]), jnp.asarray([[0, 0, 1]])
    stays = jnp.asarray([[0.0], [1.0], [1.0]]) * gate.stays[...][None]
    wanted = gate.part[...][parts[0]] + stays
    np.testing.assert_allclose(gate.marks(keeps, parts)[0], wanted, atol=1e-6)


@pytest.mark.parametrize("rule", GATES)
def test_in_x64(rule):
    """Sums of whole numbers are int64 there, which met int32 ones."""
    batch = tiny.batch()
    with jax.enable_x64(True):
        model = tiny.model(gate=rule, keep_from=0.3)
        how = {"step": jnp.int32(0), "train": True, "objective": ObjectiveConfig()}
        terms = jax.eval_shape(lambda: model.terms(batch, jax.random.key(0), **how))
        posterior = jax.eval_shape(lambda: model.encode(batch["tokens"], batch["mask"], keep=0.5))
    assert posterior.log_alpha.dtype == jnp.float32
    assert {cost.dtype for cost in terms.costs.values()} == {jnp.dtype("float32")}


def test_a_rival_has_no_gate():
    assert tiny.model(kind="VTS", gate="pace").gate is None


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("gate", "words", "'none', 'surprise', 'pace'"),
        ("gate_share", 1.0, "0 < gate_share < 1"),
        ("gate_share", float("nan"), "a finite number"),
        ("gate_window", 0, "at least 1"),
        ("keep_from", 1.5, "0 < keep_from < 1"),
    ],
)
def test_errors(field, value, wanted):
    with pytest.raises(ValueError, match=f"model.{field}.*{wanted}"):
        dataclasses.replace(NVAEConfig(), **{field: value})


@pytest.mark.parametrize("rule", ["none", "pace"])
def test_a_model_for_every_budget_is_trained_at_many(rule):
    """Each sentence keeps a share from .3 up, evenly on a log scale; evaluation keeps its own."""
    model = tiny.model(gate=rule, keep_from=0.3, max_length=64)
    tokens = jax.random.randint(jax.random.key(0), (200, 64), 4, tiny.VOCAB)
    batch = {"tokens": tokens, "mask": jnp.ones(tokens.shape, bool)}
    encode, seen = model.encode, []

    def watched(*arguments, **options):
        seen.append(encode(*arguments, **options))
        return seen[-1]

    @partial(jax.jit, static_argnums=0)
    def share(train):
        step, objective = jnp.int32(0), ObjectiveConfig()
        model.terms(batch, jax.random.key(1), step=step, train=train, objective=objective)
        return jnp.mean(kept(seen.pop(), 0.0), axis=1)

    model.encode = watched
    trained, evaluated = np.asarray(share(True)), np.asarray(share(False))
    assert trained.min() >= 0.3
    assert np.mean(trained < 0.3**0.5) == pytest.approx(0.5, abs=0.12)  # 3.4 standard errors
    np.testing.assert_array_equal(evaluated, 1.0)  # a limit of 0, or no gate: all
