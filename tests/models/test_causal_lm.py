"""The causal language model: its cache, what later tokens change, and that it is a distribution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from tolerance import assert_close

from nvib_jax.config import MeshConfig, ObjectiveConfig
from nvib_jax.generate import beam_search, generate
from nvib_jax.models.causal_lm import CausalLM
from nvib_jax.models.config import CausalConfig
from nvib_jax.models.params import merge, split
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.training import loop

SIZES = {"dim": 16, "heads": 2, "hidden": 32, "plain_layers": 1, "nvib_layers": 2, "dropout": 0.0}


def module(**options):
    model = CausalLM(
        CausalConfig(**SIZES | options), vocab_size=20, max_length=tiny.LENGTH, rngs=nnx.Rngs(0)
    )
    model.bias[...] = jax.random.normal(jax.random.key(1), (20,))  # sentences that end
    return model


@pytest.mark.parametrize("options", [{}, {"nvib_layers": 0}, {"evaluation_form": "exact"}])
def test_writing_step_by_step_is_the_whole_sentence(options):
    model, batch = module(**options), tiny.batch()
    inputs, _, counted = decoder_io(batch["tokens"], batch["mask"])
    x, _ = jax.jit(model.states)(inputs, counted)
    whole = model._logits(x)
    caches, step = model.empty_caches(4, inputs.shape[1]), jax.jit(model.decode_step)
    for t in range(inputs.shape[1]):
        logits, caches = step((), caches, inputs[:, t], jnp.int32(t))
        valid = np.asarray(counted[:, t])
        assert_close(logits[valid], whole[:, t][valid], 1e-5)


def test_later_tokens_change_nothing_before_them():
    """To the last bit, read and drawn: tokens from the fourth on are others."""
    graph, params = split(module())
    tokens, mask = tiny.batch(lengths=(6, 6, 6, 6))["tokens"], jnp.ones((4, 6), bool)
    others = tokens.at[:, 3:].set((tokens[:, 3:] + 5) % 16 + 4)

    @jax.jit
    def states(params, tokens, key):
        inputs, _, counted = decoder_io(tokens, mask)
        model = merge(graph, params)
        return model.states(inputs, counted)[0], model.states(inputs, counted, draw=key)[0]

    for a, b in zip(*(states(params, t, jax.random.key(0)) for t in (tokens, others)), strict=True):
        np.testing.assert_array_equal(a[:, :4], b[:, :4])
        assert float(jnp.min(jnp.max(jnp.abs(a[:, 4:] - b[:, 4:]), axis=-1))) > 1e-4


def test_the_loss_is_minus_the_log_probability():
    model, batch = module(), tiny.batch()
    log_p = jax.jit(model.log_probs)(batch["tokens"], batch["mask"])
    assert log_p.shape == (4, 7)
    np.testing.assert_array_equal(log_p != 0, np.arange(7) <= np.array([[6], [3], [1], [4]]))
    terms = model.terms(
        batch, jax.random.key(0), step=jnp.int32(0), train=False, objective=ObjectiveConfig()
    )
    assert_close(-jnp.sum(log_p), terms.nll, 1e-5)
    assert set(terms.costs) == {f"{n}/{i}" for n in ("gaussian", "dirichlet") for i in (1, 2)}
    below, _ = model.posteriors(batch["tokens"], batch["mask"])
    np.testing.assert_array_equal(below.mask[:, 1:], batch["mask"])


def test_what_is_written_is_likeliest_by_its_own_log_probability():
    """Greedy decoding with caches takes the whole model's likeliest tokens; so does a beam of 1."""
    model = module(nvib_layers=1)
    run = jax.jit(lambda m: generate(m, (), jax.random.key(0), max_length=6, rows=2))
    greedy = np.asarray(run(model))
    np.testing.assert_array_equal(greedy[0], greedy[1])
    tokens = greedy[:1]
    inputs, _, counted = decoder_io(jnp.asarray(tokens), jnp.asarray(tokens != 0))
    logits = np.array(model._logits(model.states(inputs, counted)[0]))[0]
    logits[:, :2] = -np.inf  # padding and beginning are never written
    length = int((tokens != 0).sum())
    assert logits.argmax(-1)[:length].tolist() == tokens[0, :length].tolist()
    assert length == 6 or logits[length].argmax() == 2
    alone, _ = beam_search(model, (), max_length=6, beams=1, rows=1)
    np.testing.assert_array_equal(alone[0], tokens)


def test_it_trains_scores_and_writes():
    mesh = MeshConfig(fsdp=2, tensor=2)
    config = dataclasses.replace(tiny.config("causal"), model=CausalConfig(**SIZES), mesh=mesh)
    model = loop.train(tiny.with_train(config, steps=20)).model
    texts = ["the dog sees a cat", "a cat sees the dog that runs"]
    scores = model.score(texts)
    assert scores.shape == (2,)
    assert (scores < 0).all()
    assert len(model.sample(3)) == 3
    for ask in (model.encode, model.embed, model.reconstruct):
        with pytest.raises(ValueError, match="a causal_lm model"):
            ask(texts)
    with pytest.raises(ValueError, match="a causal_lm model encodes no texts to one posterior"):
        model.sample(2, lengths=[3, 4])
