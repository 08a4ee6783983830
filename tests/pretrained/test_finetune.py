"""Bottlenecks in a pretrained model: the identity, caches, draws that tell nothing, training."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_made import given, made, pairs

from nvib_jax import pretrained
from nvib_jax.models.params import merge
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.bottleneck import Bottleneck
from nvib_jax.pretrained.finetune import FinetuneConfig, bottlenecks, finetune
from nvib_jax.pretrained.train import TrainingConfig, fit, train


def prior_of(family):
    return made(family).empirical_prior(*given(family, 40, 9))


def batch_of(model, family):
    rows, others = model.rows(*given(family))
    ((_, batch),) = model.batches(rows, others)
    return batch


def states(model, readings, draw=None):
    family = model.architecture.family
    batch = batch_of(model, family)
    start = () if batch.target is None else (batch.target, batch.target_mask)

    @jax.jit
    def run(params, readings):
        module, view = merge(model.graph, params), View(readings, draw=draw)
        return module.states(batch.tokens, batch.mask, *start, view=view)

    mask = batch.mask if batch.target is None else batch.target_mask
    return np.where(np.asarray(mask)[..., None], np.asarray(run(model.params, readings)), 0)


@pytest.mark.parametrize("family", ["gpt2", "bart", "t5"])
def test_it_begins_as_the_reading_that_it_is_of(family):
    """With many pseudo-counts, where E[log pi] is the log of the share; and drawn, nearly so,
    where the prior's component, which has the data's variance, is out of reach.
    """
    model, prior = made(family), prior_of(family)
    config = FinetuneConfig(alpha=0.5, sigma=0.3, concentration=1e5)
    learned = bottlenecks(model, prior, config)
    given = model.reinterpret(prior, alpha=0.5, sigma=0.3).readings
    wanted = states(model, given)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(states(model, learned), wanted, atol=1e-4 * scale)
    assert np.abs(states(model, {}) - wanted).max() > 1e-2 * scale
    quiet = bottlenecks(model, prior, dataclasses.replace(config, sigma=1e-3, alpha=12.0))
    drawn = states(model, quiet, jax.random.key(0))
    still = states(model, quiet)
    assert 1e-4 * scale < np.abs(drawn - still).max() < 5e-2 * scale


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_step_by_step_is_the_whole(family):
    model = made(family)
    readings = bottlenecks(model, prior_of(family), FinetuneConfig(alpha=0.0, sigma=0.5))
    module = merge(model.graph, model.params)
    tokens = jnp.asarray(np.random.default_rng(0).integers(3, 90, (2, 6)), jnp.int32)
    mask = jnp.ones(tokens.shape, bool)
    memories = ()
    if family == "t5":
        view = View(readings)
        memories = module.memories(module.encode(tokens, mask, view), mask, view)
        first = dict(view.first)

    @jax.jit
    def decode(tokens, caches, place):
        view = View(readings)
        if family == "t5":
            view.first |= first
        return module.decode(tokens, jnp.ones(tokens.shape, bool), memories, caches, place, view)

    whole, _ = decode(tokens, module.empty_caches(2, 6), 0)
    caches, steps = module.empty_caches(2, 8), []
    for i in range(6):
        x, caches = decode(tokens[:, i : i + 1], caches, i)
        steps.append(x)
    apart = np.abs(np.concatenate(steps, axis=1) - np.asarray(whole)).max()
    assert apart < 1e-5 * np.abs(whole).max()


def test_draws_tell_nothing_of_later_tokens():
    """The weights of a prefix are a Dirichlet draw up to a factor, which cancels."""
    model = made("gpt2")
    readings = bottlenecks(model, prior_of("gpt2"), FinetuneConfig(alpha=0.0, sigma=0.5))
    module = merge(model.graph, model.params)

    @jax.jit
    def run(tokens):
        view = View(readings, draw=jax.random.key(1))
        return module.states(tokens, jnp.ones(tokens.shape, bool), view=view)

    tokens = jnp.arange(5, 13, dtype=jnp.int32)[None]
    one, two = run(tokens), run(tokens.at[0, 5:].set(60))
    scale = np.abs(one).max()
    assert np.abs(one[:, :5] - two[:, :5]).max() < 2e-6 * scale
    assert np.abs(one[:, 5:] - two[:, 5:]).max() > 1e-2 * scale


def test_low_rank_is_a_kernel_near_the_identity():
    """At first it is the identity exactly; later it is what its parts make."""
    model, prior = made("gpt2"), prior_of("gpt2")
    config = FinetuneConfig(concentration=10.0)
    whole, thin = (
        bottlenecks(model, prior, dataclasses.replace(config, rank=rank)) for rank in (0, 3)
    )
    x, mask = jax.random.normal(jax.random.key(0), (2, 5, 16)), jnp.ones((2, 5), bool)

    def moved(one):
        """As if it had been trained: its parts are other numbers."""
        maps = {n: a + 0.1 * jax.random.normal(jax.random.key(1), a.shape) for n, a in one.items()}
        return Bottleneck.of(thin[name].prior, maps)

    for name in whole:
        one, other = (b[name].posterior(x, mask) for b in (whole, thin))
        for field in ("mean", "log_variance", "log_alpha"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
        trained = moved(thin[name].maps)
        parts = (trained.mean_kernel, trained.variance_kernel)
        mean, variance = (k.scale * jnp.eye(16) + k.down @ k.up for k in parts)
        dense = dataclasses.replace(trained, mean_kernel=mean, variance_kernel=variance)
        found, wanted = (b.posterior(x, mask) for b in (trained, dense))
        np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-5)
        np.testing.assert_allclose(found.log_variance, wanted.log_variance, atol=1e-5)
        assert np.abs(found.mean - one.mean).max() > 0.1
        few, many = (sum(a.size for a in b[name].maps.values()) for b in (thin, whole))
        assert few < many / 2
    with pytest.raises(ValueError, match=r"training.rank is -1; wanted at least 0"):
        FinetuneConfig(rank=-1)


def test_the_exact_kl_trains_it_too():
    model = made("gpt2")
    texts, _ = pairs(32, 3)
    config = FinetuneConfig(
        steps=10, batch_size=16, train="all", learning_rate=1e-2, form="exact", anneal_steps=4
    )
    said = []
    tuned = finetune(model, prior_of("gpt2"), texts, None, config, say=said.append)
    assert tuned.score(texts).perplexity() < 0.8 * model.score(texts).perplexity()
    assert all(math.isfinite(float(word)) for word in said[-1].replace(",", "").split()[3::2])


def test_it_trains_writes_and_is_kept(tmp_path):
    made("bart").to_hugging_face(tmp_path / "model")
    model = pretrained.load(tmp_path / "model")
    texts, targets = pairs(64, 3)
    prior = model.empirical_prior(texts, targets)
    said = []
    config = FinetuneConfig(
        steps=30, batch_size=16, train="all", learning_rate=1e-2, anneal_steps=10
    )
    tuned = finetune(model, prior, texts, targets, config, say=said.append)
    before, after = (m.score(texts, targets).perplexity() for m in (model, tuned))
    assert after < 0.5 * before
    assert len(said) == 10
    assert all(math.isfinite(float(word)) for word in said[-1].replace(",", "").split()[3::2])
    for name, learned in tuned.readings.items():
        np.testing.assert_array_equal(learned.prior.mean, prior.priors[name].prior.mean)
        assert float(learned.prior.log_alpha) == 0
        assert not np.array_equal(learned.mean_kernel, np.eye(16))
    assert all(share.mean() > 0 for share in tuned.shares(texts, targets).values())

    tuned.save(tmp_path / "whole")  # weights that were trained are written with their bottlenecks
    again = pretrained.load(tmp_path / "whole")
    np.testing.assert_array_equal(
        again.score(texts, targets).nats, tuned.score(texts, targets).nats
    )
    rules = pretrained.Decoding(max_new_tokens=5)
    assert again.generate(texts[:2], decoding=rules) == tuned.generate(texts[:2], decoding=rules)
    again.save(tmp_path / "readings")  # they are in a folder now, and are not written again
    assert not (tmp_path / "readings" / "model.safetensors").exists()
    third = pretrained.load(tmp_path / "readings")
    np.testing.assert_array_equal(
        third.score(texts, targets).nats, tuned.score(texts, targets).nats
    )
    with pytest.raises(FileExistsError, match="holds a model; name another folder"):
        tuned.save(tmp_path / "whole")


def test_bottlenecks_alone_are_kept_without_weights(tmp_path):
    made("gpt2").to_hugging_face(tmp_path / "model")
    model, (texts, _) = pretrained.load(tmp_path / "model"), pairs(24, 3)
    config = FinetuneConfig(steps=5, batch_size=8, learning_rate=1e-2, train="nvib", rank=2)
    tuned = finetune(model, model.empirical_prior(texts), texts, None, config)
    learned = next(iter(tuned.readings.values()))
    assert [a.shape for a in vars(learned.mean_kernel).values()] == [(), (16, 2), (2, 16)]
    assert np.abs(learned.mean_kernel.up).max() > 0
    assert all((tuned.params[name] == p).all() for name, p in model.params.items())
    tuned.save(tmp_path / "tuned")
    assert not (tmp_path / "tuned" / "model.safetensors").exists()
    again = pretrained.load(tmp_path / "tuned")
    np.testing.assert_array_equal(again.score(texts).nats, tuned.score(texts).nats)
    rules = pretrained.Decoding(max_new_tokens=5)
    assert again.generate(texts[:2], decoding=rules) == tuned.generate(texts[:2], decoding=rules)


def test_weights_are_trained_without_bottlenecks():
    """The first part of all experiments: texts that it has seen become likely."""
    model = made("gpt2")
    texts, _ = pairs(48, 3)
    tuned = train(model, texts, config=TrainingConfig(steps=40, batch_size=16, learning_rate=1e-2))
    assert tuned.score(texts).perplexity() < 0.5 * model.score(texts).perplexity()
    assert tuned.digest != model.digest


def test_a_model_that_was_trained_is_kept_whole(tmp_path):
    """Its rules of writing too; and it has its weights from its own folder and no other."""
    first = tmp_path / "model"
    made("gpt2").to_hugging_face(first)
    (first / "generation_config.json").write_text('{"num_beams": 3, "max_new_tokens": 4}')
    model = pretrained.load(first)
    other = model.with_params({n: p + 0.1 * (p.ndim > 1) for n, p in model.params.items()})
    assert other.digest != model.digest
    other.save(tmp_path / "other")
    assert not (tmp_path / "other" / "reading.json").exists()  # there is nothing to say
    again = pretrained.load(tmp_path / "other")
    assert again.decoding == other.decoding == model.decoding
    assert again.decoding.num_beams == 3
    for name, param in other.params.items():
        np.testing.assert_array_equal(again.params[name], param)
    model.save(tmp_path / "same")
    assert json.loads((tmp_path / "same" / "reading.json").read_text())["model"] == str(first)


def test_devices_that_share_a_batch_train_as_one():
    """Draws and dropout too; and it ends where it began, on one device."""
    model, (texts, _) = made("gpt2"), pairs(24, 3)
    prior = prior_of("gpt2")
    config = FinetuneConfig(steps=4, batch_size=8, learning_rate=1e-2, train="all")
    said = {1: [], 4: []}
    one, four = (
        finetune(
            model, prior, texts, None, dataclasses.replace(config, devices=n), say=said[n].append
        )
        for n in (1, 4)
    )
    assert len(said[1]) == 4  # a line a step: nats and the two KLs
    for line, other in zip(said[1], said[4], strict=True):
        wanted, found = (np.array(x.replace(",", "").split()[3::2], float) for x in (line, other))
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(four.score(texts).nats, one.score(texts).nats, rtol=1e-3)
    # Adam divides gradients by themselves, and so errors of rounding too where they are near 0.
    for name, param in one.params.items():
        np.testing.assert_allclose(four.params[name], param, atol=5e-3, err_msg=name)
        assert len(four.params[name].devices()) == 1
        assert not four.params[name].committed
    assert max(np.abs(four.params[n] - p).max() for n, p in model.params.items()) > 2e-2


def test_each_device_has_its_part_of_a_batch():
    model, (texts, _), seen = made("gpt2"), pairs(24, 3), []

    def loss(trained, batch, key, index):
        jax.debug.inspect_array_sharding(batch.tokens, callback=seen.append)
        nats = jnp.sum(trained["w"] * batch.tokens.astype(jnp.float32))
        return nats, {"nats": nats}

    for devices, rows in ((1, 8), (4, 2), (0, 1)):
        config = TrainingConfig(steps=1, batch_size=8, devices=devices)
        found = fit(
            model, {"w": jnp.zeros(())}, loss, model.rows(texts), config, folder=None, say=None
        )
        assert seen[-1].shard_shape((8, 8))[0] == rows
        assert float(found["w"]) < 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"devices": -1}, "training.devices is -1; wanted at least 0"),
        ({"devices": 9}, "training.devices is 9; there are 8"),
        ({"devices": 0, "batch_size": 12}, "batch_size is 12; wanted a multiple of the 8 devices"),
    ],
)
def test_devices_that_cannot_share(change, error):
    texts, _ = pairs(24, 3)
    with pytest.raises(ValueError, match=error):
        train(made("gpt2"), texts, config=TrainingConfig(**change))


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    model, (texts, _) = made("gpt2"), pairs(24, 3)
    config = TrainingConfig(steps=10, batch_size=8, learning_rate=1e-2)
    whole = train(model, texts, config=config)

    class Stopped(Exception):
        pass

    def stop(line):
        if line.startswith("step 7"):
            raise Stopped

    with pytest.raises(Stopped):
        train(model, texts, config=config, folder=tmp_path, say=stop)
    with pytest.raises(ValueError, match="of an unfinished run with other texts, weights or set"):
        train(model, texts[1:], config=config, folder=tmp_path)
    said = []
    again = train(model, texts, config=config, folder=tmp_path, say=said.append)
    assert said[0] == "goes on after step 6"
    assert [line.split(":")[0] for line in said[1:]] == [f"step {i}" for i in (7, 8, 9, 10)]
    for name, param in whole.params.items():
        np.testing.assert_array_equal(again.params[name], param)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "unfinished.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"unfinished\.safetensors cannot be read .*; delete it"):
        train(model, texts, config=config, folder=tmp_path)


def test_what_cannot_be():
    model, prior = made("bart"), prior_of("bart")
    with pytest.raises(ValueError, match="a finite alpha and a sigma above 0: without variance"):
        bottlenecks(model, prior, FinetuneConfig(sigma=0.0))
    with pytest.raises(ValueError, match="measured with other weights"):
        bottlenecks(made("gpt2"), prior, FinetuneConfig())
    with pytest.raises(ValueError, match=r"training\.alpha is inf; wanted a finite number"):
        FinetuneConfig(alpha=math.inf)
    with pytest.raises(ValueError, match=r"training\.lambda_gaussian is -1\.0; wanted at least 0"):
        FinetuneConfig(lambda_gaussian=-1.0)
    with pytest.raises(ValueError, match="a bert model fills gaps"):
        finetune(made("bert"), prior_of("bert"), ["the dog"])
