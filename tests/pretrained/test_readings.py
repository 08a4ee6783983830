"""Models re-read: the identity, the library's attention, caches, causality, figures, files."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_made import CONFIGS, given, made, pairs

import nvib_jax as nvib
from nvib_jax import pretrained
from nvib_jax.attention.inputs import MASK_VALUE
from nvib_jax.models.params import merge
from nvib_jax.pretrained import attention
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.readings import Priors
from nvib_jax.reading import Tau, identity_posterior

FORMS = ("expected_logit", "published", "exact", "simplified")


def prior_of(family: str) -> Priors:
    return made(family).empirical_prior(*given(family, 40, 9))


def states(model, readings=None):
    """The decoder's or encoder's last states, 0 where there is padding."""
    rows, others = model.rows(*given(model.architecture.family))
    ((_, batch),) = model.batches(rows, others)
    start = () if others is None else (batch.target, batch.target_mask)

    @jax.jit
    def run(params, readings):
        module = merge(model.graph, params)
        return module.states(batch.tokens, batch.mask, *start, view=View(readings))

    out = run(model.params, model.readings if readings is None else readings)
    mask = batch.mask if others is None else batch.target_mask
    return np.where(np.asarray(mask)[..., None], np.asarray(out), 0)


# All forms for the family that has all attentions, and one or two of the others' for each.
WHOLE = [*(("bart", form) for form in FORMS), ("bert", "exact"), ("gpt2", "published")]
WHOLE += [("t5", "expected_logit"), ("t5", "exact")]


@pytest.mark.parametrize(("family", "form"), WHOLE)
def test_alpha_infinity_is_the_model(family, form):
    """Named so it *is* the plain model; as a traced number the gate lets nothing through."""
    model, prior = made(family), prior_of(family)
    assert model.reinterpret(prior, form=form).readings == {}
    plain = states(model)
    readings = {
        name: nvib.reading.Reading(found.prior, Tau(jnp.float32(math.inf), 0.0, 1.0), form)
        for name, found in prior.priors.items()
    }
    # The log-sum-exp is one more output, for which the softmax is summed in another order.
    np.testing.assert_allclose(states(model, readings), plain, atol=2e-6 * np.abs(plain).max())
    moved = states(model.reinterpret(prior, alpha=0.0, form=form))
    assert np.abs(moved - plain).max() > 1e-2


@pytest.mark.parametrize(
    ("family", "form", "sigma"),
    [(*each, 0.5) for each in WHOLE] + [("bart", form, 0.0) for form in FORMS[:2]],
)
def test_the_gate_is_the_librarys_attention(family, form, sigma, monkeypatch):
    """Every attention of a whole model by `denoising_attention` over `identity_posterior`."""
    model = made(family)
    tuned = model.reinterpret(prior_of(family), alpha=0.5, sigma=sigma, form=form)
    gated = states(tuned)
    monkeypatch.setattr(attention.Attention, "memory", _keep)
    monkeypatch.setattr(attention.Attention, "__call__", _by_the_library)
    monkeypatch.setattr(merge(model.graph, model.params).__class__, "empty_caches", _no_caches)
    monkeypatch.setattr(
        "nvib_jax.pretrained.transformer.append", lambda cache, memory, place: memory
    )
    by_library = states(tuned)
    scale = np.abs(by_library).max()
    np.testing.assert_allclose(gated, by_library, atol=3e-5 * scale)


class _Kept:
    """Stands for a memory: what was read."""

    def __init__(self, x, mask):
        self.x, self.mask, self.bias = x, mask, jnp.where(mask, 0.0, MASK_VALUE)


def _keep(self, x, mask, view):
    return _Kept(x, mask)


def _no_caches(self, rows, places):
    return tuple(
        _Kept(None, jnp.zeros((rows, places), bool)) for _ in range(len(self.decoder.layers))
    )


def _by_the_library(self, x, memory, view, *, visible=None, position_bias=None):
    """The attention as one denoising attention over N + 1 components of width D."""
    reading = view.readings[self.name]
    posterior = identity_posterior(memory.x, memory.mask, reading, head_dim=self.head_dim)
    mixture = nvib.Mixture(
        posterior.mean, posterior.log_variance, posterior.log_alpha, posterior.mask
    )
    query = self._by_head(self.query(x)) * self.scale * self.head_dim**0.5
    batch, length = x.shape[:2]
    places = memory.x.shape[1]
    seen = jnp.ones((length, places), bool) if visible is None else visible
    mask = jnp.pad(
        jnp.broadcast_to(seen[None], (batch, length, places)),
        ((0, 0), (0, 0), (1, 0)),
        constant_values=True,
    )
    bias = None
    if position_bias is not None:
        weight = (mask[:, :, 1:] & memory.mask[:, None]).astype(jnp.float32)
        mean = jnp.einsum("hts,bts->bht", position_bias, weight) / weight.sum(-1)[:, None]
        whole = jnp.broadcast_to(position_bias[None], (batch, *position_bias.shape))
        bias = jnp.concatenate([mean[..., None], whole], axis=-1)
    value_bias = None if self.value.bias is None else self._by_head(self.value.bias[...])
    out = nvib.denoising_attention(
        query,
        mixture,
        key_kernel=self._kernel(self.key),
        value_kernel=self._kernel(self.value),
        value_bias=value_bias,
        mask=mask,
        position_bias=bias,
        form=reading.form,
        implementation="xla",
    )
    return self.out(out.reshape(batch, length, -1))


@pytest.mark.parametrize(
    ("family", "form"), [("gpt2", "exact"), ("bart", "expected_logit"), ("t5", "published")]
)
def test_step_by_step_is_the_whole(family, form):
    """Off the identity, with padding before the prompt of a causal model."""
    model = made(family).reinterpret(prior_of(family), alpha=0.5, sigma=0.3, form=form)
    module, view = merge(model.graph, model.params), View(model.readings)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(3, 90, (2, 7)), jnp.int32)
    mask = jnp.asarray([[True] * 7, [False] * 2 + [True] * 5])
    memories = ()
    if family != "gpt2":
        read = jax.jit(lambda: module.memories(module.encode(tokens, mask, view), mask, view))
        memories = read()
        mask = jnp.ones_like(mask)

    @jax.jit
    def decode(tokens, mask, caches, place):
        return module.decode(tokens, mask, memories, caches, place, View(model.readings))

    whole, _ = decode(tokens, mask, module.empty_caches(2, 7), 0)
    caches, steps = module.empty_caches(2, 9), []
    for part in (slice(0, 3), *(slice(i, i + 1) for i in range(3, 7))):
        x, caches = decode(tokens[:, part], mask[:, part], caches, part.start)
        steps.append(x)
    real = np.asarray(mask)[..., None]
    apart = np.where(real, np.concatenate(steps, axis=1) - np.asarray(whole), 0)
    assert np.abs(apart).max() < 1e-5 * np.abs(whole).max()


def test_later_tokens_change_nothing_before_them():
    model = made("gpt2").reinterpret(prior_of("gpt2"), alpha=0.0)
    module = merge(model.graph, model.params)
    mask = jnp.ones((1, 8), bool)

    @jax.jit
    def run(tokens):
        return module.states(tokens, mask, view=View(model.readings))

    tokens = jnp.arange(5, 13, dtype=jnp.int32)[None]
    other = tokens.at[0, 5:].set(60)
    np.testing.assert_array_equal(run(tokens)[:, :5], run(other)[:, :5])
    assert np.abs(run(tokens)[:, 5:] - run(other)[:, 5:]).max() > 1e-3


def test_a_constant_in_the_bias_table_changes_nothing():
    """Off the identity: the prior's component has the mean bias of what a query sees."""
    model = made("t5").reinterpret(prior_of("t5"), alpha=0.0)
    shifted = {name: p + 3.0 * (name.endswith("bias.relative")) for name, p in model.params.items()}
    again = states(dataclasses.replace(model, params=shifted))
    plain = states(model)
    np.testing.assert_allclose(again, plain, atol=2e-5 * np.abs(plain).max())


@pytest.mark.parametrize("family", CONFIGS)
def test_moments_are_those_of_what_is_read(family, monkeypatch):
    """In batches, merged: the same as numpy's of all vectors at once."""
    model = made(family)
    texts = given(family, 40, 9)
    read = read_in(model, texts)
    monkeypatch.setattr("nvib_jax.pretrained.batches.ROWS", 8)
    prior = model.empirical_prior(*texts)
    assert set(prior.priors) == set(model.attentions)
    for name, (x, mask) in read.items():
        found, real = prior.priors[name], np.asarray(x, np.float64)[np.asarray(mask)]
        energy = (real**2).sum(1) / (2 * math.sqrt(model.architecture.head_dim))
        np.testing.assert_allclose(found.prior.mean, real.mean(0), atol=1e-5)
        np.testing.assert_allclose(np.exp(found.prior.log_variance), real.var(0), rtol=1e-4)
        np.testing.assert_allclose(found.prior.log_alpha, energy.mean(), rtol=1e-5)
        np.testing.assert_allclose(found.scale, energy.std(), rtol=1e-4, atol=1e-5)


def read_in(model, texts):
    """What each attention reads of these texts in one batch, and its mask."""
    from nvib_jax.pretrained.batches import Batch, padded
    from nvib_jax.pretrained.passes import everything

    rows, *others = (part for part in model.rows(*texts) if part is not None)
    parts = [padded(part, max(map(len, part)), len(part), 0) for part in (rows, *others)]

    @jax.jit
    def run(params):
        view = View()
        everything(
            merge(model.graph, params), Batch(*parts[0], *parts[-1][: 2 * len(others)]), view
        )
        return view.read

    return run(model.params)


def test_shares_rise_as_alpha_falls():
    model, prior = made("bart"), prior_of("bart")
    texts = given("bart")
    assert all((share == 0).all() for share in model.shares(*texts).values())
    rising = [
        np.mean(list(model.reinterpret(prior, alpha=a).shares(*texts).values()))
        for a in (6.0, 2.0, 0.0, -3.0)
    ]
    assert rising == sorted(rising)
    assert 0 < rising[0] < 0.02
    assert rising[-1] > 0.4
    only = model.reinterpret(prior, tau={"cross": Tau(0.0)}).shares(*texts)
    assert only["cross"].min() > 0
    assert only["encoder.0.self"].max() == 0


def test_the_longest_name_wins():
    model, prior = made("bart"), prior_of("bart")
    tau = {"encoder": Tau(1.0), "encoder.1.self": Tau(2.0), "all": Tau(3.0)}
    found = model.reinterpret(prior, tau=tau).readings
    alphas = {name: float(reading.tau.alpha) for name, reading in found.items()}
    assert alphas == {
        "encoder.0.self": 1.0,
        "encoder.1.self": 2.0,
        "decoder.0.self": 3.0,
        "decoder.1.self": 3.0,
        "cross": 3.0,
    }


def test_other_taus_compile_nothing():
    model, prior = made("bart"), prior_of("bart")
    texts = given("bart")
    first = model.reinterpret(prior, alpha=1.0)
    before = first.score(*texts).nats
    with jax.log_compiles(False):
        count = len(model._compiled)
        sizes = {name: run._cache_size() for name, run in model._compiled.items()}
        after = model.reinterpret(prior, alpha=-1.0).score(*texts).nats
    assert not np.allclose(before, after)
    assert len(model._compiled) == count
    assert {name: run._cache_size() for name, run in model._compiled.items()} == sizes


def test_readings_are_saved_without_the_weights(tmp_path):
    made("bart").to_hugging_face(tmp_path / "model")
    model = pretrained.load(tmp_path / "model")
    prior = model.empirical_prior(*given("bart", 40, 9))
    tuned = model.reinterpret(
        prior, alpha=1.0, sigma=0.2, form="published", tau={"cross": Tau(0.0)}
    )
    tuned.save(tmp_path / "tuned")
    assert sum(f.stat().st_size for f in (tmp_path / "tuned").iterdir()) < 6000
    again = pretrained.load(tmp_path / "tuned")
    texts = given("bart")
    np.testing.assert_array_equal(again.score(*texts).nats, tuned.score(*texts).nats)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ValueError, match="holds readings of other weights than those of"):
        pretrained.load(tmp_path / "tuned")


def test_scores_are_log_probabilities():
    """Of all continuations of a prompt they sum to one; of a text they are its steps' sum."""
    model = made("gpt2")
    texts = ["the dog sees a cat", "some men sleep"]
    scores = model.score(texts)
    rows = [model.tokenizer.encode_source(text) for text in texts]
    assert scores.tokens.tolist() == [len(row) - 1 for row in rows]
    module = merge(model.graph, model.params)
    for row, nats in zip(rows, scores.nats, strict=True):
        tokens = jnp.asarray([row], jnp.int32)
        log_p = jax.jit(lambda t: jax.nn.log_softmax(module.logits(module.states(t, t >= 0))))(
            tokens
        )[0]
        wanted = -sum(float(log_p[i, token]) for i, token in enumerate(row[1:]))
        np.testing.assert_allclose(nats, wanted, rtol=1e-5)
    assert scores.perplexity() == pytest.approx(math.exp(scores.nats.sum() / scores.tokens.sum()))


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_texts_are_written_alike_alone_and_in_a_batch(family):
    model = made(family).reinterpret(prior_of(family), alpha=1.0)
    texts, _ = pairs(3)
    rules = pretrained.Decoding(max_new_tokens=6)
    together = model.generate(texts, decoding=rules)
    assert together == [model.generate([text], decoding=rules)[0] for text in texts]
    assert any(together)
