"""A model of another family, and another latent, go through the same loop as the library's own."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

import nvib_jax as nvib
from nvib_jax import cli
from nvib_jax.checkpoint.retention import saved_steps
from nvib_jax.config import Config
from nvib_jax.evaluation.summary import summarize_run
from nvib_jax.models import latents, params
from nvib_jax.models.build import FAMILIES
from nvib_jax.models.config import ModelConfig
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.terms import Terms
from nvib_jax.presets import from_json, to_json
from nvib_jax.text_model import TextModel
from nvib_jax.training import loop

# ---- a family: a bigram model, which has no encoder, no latent and no decoder


@dataclass(frozen=True, kw_only=True)
class BigramConfig(ModelConfig):
    rank: int = 8
    smoothing: float = 0.01


class Bigram(nnx.Module):
    """log p(next | word) of low rank, with a cost of its own on the size of the table."""

    def __init__(self, config, *, vocab_size, max_length, special, rngs):
        self.config, self.special = config, special
        init = nnx.initializers.normal(0.1)
        self.left = nnx.Param(init(rngs.params(), (vocab_size, config.rank)))
        self.right = nnx.Param(init(rngs.params(), (config.rank, vocab_size)))

    def terms(self, batch, key, *, step, train, objective):
        words, mask = batch["tokens"], batch["mask"]
        before = jnp.pad(words, ((0, 0), (1, 0)), constant_values=self.special.bos)[:, :-1]
        log_p = jax.nn.log_softmax(self.left[...][before] @ self.right[...])
        nll = -jnp.take_along_axis(log_p, words[..., None], axis=-1)[..., 0]
        size = jnp.where(jnp.any(mask, axis=-1), jnp.sum(jnp.square(self.left[...])), 0.0)
        return Terms(
            nll=jnp.sum(jnp.where(mask, nll, 0.0)),
            counted=jnp.sum(mask),
            costs={"size": self.config.smoothing * size},
            metrics={"size": (jnp.sum(size), jnp.sum(jnp.any(mask, axis=-1)))},
        )


# ---- a latent: Gaussians of one fixed width, which are charged for their distance from each other


class Pebbles(nnx.Module):
    """One draw for each state, noise of a tenth; the cost is the squared size of the means."""

    variational = pools = False

    def __init__(self, config, *, rngs):
        self.map = nnx.Linear(config.dim, config.dim, rngs=rngs)

    @property
    def prior(self):
        return nvib.Prior.standard(self.map.out_features)

    def __call__(self, x, mask):
        spread = jnp.full(x.shape, -4.6, jnp.float32)
        weights = jnp.zeros(mask.shape, jnp.float32)
        return nvib.make_posterior(self.map(x), spread, weights, mask, self.prior)

    def draw(self, posterior, key):
        return nvib.sample(key, posterior)

    def read(self, posterior, form, key=None):
        return nvib.read(posterior, "simplified")

    def costs(self, posterior, **_):
        size = jnp.sum(jnp.square(posterior.mean), axis=-1)
        return {"size": 1e-3 * jnp.sum(jnp.where(posterior.mask, size, 0.0), axis=-1)}

    def sample_prior(self, key, counts, *, most):
        return nvib.sample_prior(key, self.prior, counts, max_length=most)

    def interpolate(self, a, b, t):
        return nvib.interpolate(a, b, t)


# ---- tests


@pytest.fixture
def bigram(monkeypatch, tmp_path):
    """The config of a run of a bigram model."""
    monkeypatch.setitem(FAMILIES, "bigram", (BigramConfig, Bigram))
    monkeypatch.setitem(params.AXES, "left", ("vocab", None))
    monkeypatch.setitem(params.AXES, "right", (None, "vocab"))
    config = dataclasses.replace(tiny.config(), model=BigramConfig())
    return tiny.with_train(config, run_dir=str(tmp_path / "run"))


def validation(config):
    found = map(json.loads, Path(config.train.run_dir, "metrics.jsonl").read_text().splitlines())
    return {r["step"]: r["loss"] for r in found if r["split"] == "validation"}


def same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def test_another_family_trains_resumes_and_is_exported(bigram, tmp_path):
    """Twenty steps at once, and ten and ten: the same parameters to the last bit."""
    whole = loop.train(bigram, then=summarize_run)
    assert whole.result == {}  # it writes no text, so there is no page
    losses = validation(bigram)
    assert losses[20] < losses[10] < np.log(430)
    parts = tiny.with_train(bigram, run_dir=str(tmp_path / "parts"), steps=10)
    loop.train(parts)
    assert saved_steps(parts.train.run_dir) == [10]
    loop.train(tiny.with_train(parts, steps=20), resume=True)
    loaded = TextModel.load(parts.train.run_dir, which="last")
    same(loaded.params, whole.model.params)
    assert loaded.config.model == BigramConfig()
    assert "bigram" in repr(loaded)
    cli.main(["evaluate", parts.train.run_dir, "--sentences", "8"])
    found = json.loads(Path(parts.train.run_dir, "evaluation.json").read_text())
    assert (found["kind"], found["sentences"]) == ("bigram", 8)
    assert found["scores"]["cross_entropy"] < np.log(430)
    cli.main(["export", parts.train.run_dir, "--out", str(tmp_path / "out")])
    same(TextModel.load(tmp_path / "out").params, loaded.params)


def test_what_another_family_cannot_do_is_said(bigram):
    model = loop.train(bigram).model
    for ask in (model.encode, model.reconstruct, model.embed, model.score):
        with pytest.raises(ValueError, match="a bigram model encodes no texts"):
            ask(["the dog sees a cat"])
    with pytest.raises(ValueError, match="a bigram model writes no texts"):
        model.sample(2)


def test_a_config_of_another_family_is_read_back(bigram):
    text = to_json(bigram)
    assert json.loads(text)["model"] == {"family": "bigram", "rank": 8, "smoothing": 0.01}
    assert from_json(text) == bigram
    assert "family" not in json.loads(to_json(Config()))["model"]  # as version 0.1.0 wrote it
    with pytest.raises(ValueError, match=r"config.model.family is 'trigram'; wanted one of 'nvae'"):
        from_json(text.replace("bigram", "trigram"))
    with pytest.raises(ValueError, match="has no field 'rnak'; did you mean 'rank'"):
        from_json(text.replace("rank", "rnak"))


def test_another_latent(monkeypatch, tmp_path):
    """Trained, measured beside an untrained one, read, drawn from the prior and interpolated."""
    monkeypatch.setitem(latents.LATENTS, "pebbles", Pebbles)
    monkeypatch.setitem(params.AXES, "map.kernel", ("embed", None))
    config = tiny.config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, kind="pebbles"))
    config = tiny.with_train(config, run_dir=str(tmp_path / "run"))
    model = loop.train(config).model
    losses = validation(config)
    assert losses[20] < losses[10]
    again = TextModel.load(config.train.run_dir, which="last")
    texts = ["the dog sees a cat", "the man sees a dog"]
    assert again.reconstruct(texts) == model.reconstruct(texts)
    assert len(again.sample(2)) == 2
    assert len(again.interpolate(*texts, steps=3)) == 3
    with pytest.raises(ValueError, match="the kind pebbles has no density"):
        again.score(texts)


def test_every_latent_has_the_methods_of_one():
    names = {n for n in vars(latents.Latent) if not n.startswith("_")} | {"__call__"}
    more = {"prior", "log_density_ratio"}
    for kind, latent in latents.LATENTS.items():
        wanted = names | {"variational", "pools"} | (more if latent.variational else set())
        assert not [name for name in wanted if not hasattr(latent, name)], kind


def test_a_run_builds_its_model_once(monkeypatch, tmp_path):
    """Version 0.1.0 built it five times before the first step."""
    built = []
    plain = NVAE.__init__
    monkeypatch.setattr(
        NVAE, "__init__", lambda self, *a, **k: built.append(1) or plain(self, *a, **k)
    )
    config = tiny.with_train(tiny.config(), run_dir=str(tmp_path / "run"), steps=1, eval_every=1)
    loop.train(config)
    assert len(built) == 1
