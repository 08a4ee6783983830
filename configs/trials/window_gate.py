"""Trial: pseudo-counts that see a few words only, and a share that is held in training.

    python configs/trials/window_gate.py --window 3 --share 0.45 --run-dir runs/window-3

The quickstart's bottleneck has learned a stride (`configs/README.md`, "Which vectors?"), because
its pseudo-counts are a linear map of states that know their absolute place. Here a token's
pseudo-count is a function of its own word and `window` words on each side, so that it cannot count;
means and variances are as before. In training the limit above which a vector is kept is the
quantile of the batch that leaves the wanted share, so that the number of vectors depends neither on
a price nor on the seed, and a sentence may have more or fewer. Afterwards the limit is measured
once on training sentences and kept.

This is a family of models of its own, made from outside the library (`nvib_jax.models.build`), and
not an option yet: one seed has been tried, and what it shows is in `configs/README.md`.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from nvib_jax.data import prepare
from nvib_jax.data.grammar import default_grammar
from nvib_jax.evaluation import evidence_bound, reconstruction_scores, vector_usage
from nvib_jax.evaluation.choice import choice, choice_scores
from nvib_jax.files import write_whole
from nvib_jax.models.build import FAMILIES
from nvib_jax.models.config import NVAEConfig
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import AXES
from nvib_jax.modules.linear import Linear
from nvib_jax.posterior import make_posterior
from nvib_jax.presets import load_preset
from nvib_jax.training import loop

OUTSIDE = 987654  # seed of sentences that no preset trains on or measures
QUICKSTART = Path(__file__).resolve().parent.parent / "quickstart.py"


@dataclass(frozen=True, kw_only=True)
class WindowGateConfig(NVAEConfig):
    """An NVAE whose pseudo-counts come from a window of words."""

    window: int = 3
    """Words on each side that a pseudo-count depends on."""
    share: float = 0.45
    """Share of a batch's vectors that are kept in training."""
    gate_hidden: int = 128
    """Width of the gate's hidden layer."""


class WindowGateNVAE(NVAE):
    """An NVAE with `alpha = max(0, g(words around) - limit)`."""

    def __init__(self, config: WindowGateConfig, **sizes: Any):
        super().__init__(config, **sizes)
        width, rngs = (2 * config.window + 1) * config.dim, sizes["rngs"]
        self.gate_in = Linear(width, config.gate_hidden, rngs=rngs)
        self.gate_out = Linear(config.gate_hidden, 1, rngs=rngs)
        self.limit = nnx.Param(jnp.float32(0.0))

    def encode(self, tokens: jax.Array, mask: jax.Array, key: jax.Array | None = None):
        """Tokens to posterior; with a key, as in training, the limit is the batch's own."""
        plain, score = super().encode(tokens, mask, key), self.score(tokens, mask)
        limit = self.limit[...] if key is None else self.limit_of(score, mask)
        alpha = jax.nn.relu(score - jax.lax.stop_gradient(limit))
        there = alpha > 0
        log_alpha = jnp.where(there, jnp.log(jnp.where(there, alpha, 1.0)), -jnp.inf)
        return make_posterior(
            plain.mean[:, 1:], plain.log_variance[:, 1:], log_alpha, mask, self.latent.prior
        )

    def score(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """The gate g of each token, (B, N)."""
        words = jnp.where(mask[..., None], self._embed(self.encoder_embedding, tokens), 0.0)
        window, length = self.config.window, words.shape[1]
        padded = jnp.pad(words, ((0, 0), (window, window), (0, 0)))
        around = [padded[:, i : i + length] for i in range(2 * window + 1)]
        return self.gate_out(nnx.gelu(self.gate_in(jnp.concatenate(around, axis=-1))))[..., 0]

    def limit_of(self, score: jax.Array, mask: jax.Array) -> jax.Array:
        """The limit that leaves the wanted share of these tokens, ()."""
        return jnp.nanquantile(jnp.where(mask, score, jnp.nan), 1 - self.config.share)


FAMILIES["window_gate"] = (WindowGateConfig, WindowGateNVAE)
AXES |= {"gate_in.kernel": ("embed", None), "gate_out.kernel": (None, None)}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Train on the grammar as the quickstart does, but for the gate, and measure the choice."""

    run_dir: Path
    """The run."""
    window: int = 3
    """Words on each side that a pseudo-count depends on."""
    share: float = 0.45
    """Share of the vectors that are kept."""
    steps: int = 3200
    """Optimiser steps."""
    seed: int = 0
    """Of parameters, draws and batch order."""
    sentences: int = 512
    """Sentences that are measured."""


def run(trial: Trial) -> dict[str, Any]:
    """Train and measure; writes `trial.json` into the run's folder and returns what it says."""
    preset = load_preset(QUICKSTART)
    model = WindowGateConfig(**vars(preset.model), window=trial.window, share=trial.share)
    config = dataclasses.replace(
        preset,
        model=model,
        objective=dataclasses.replace(preset.objective, vector_price=0.0, free_vectors=0.0),
        train=dataclasses.replace(
            preset.train,
            steps=trial.steps,
            eval_every=trial.steps,
            seed=trial.seed,
            run_dir=str(trial.run_dir),
        ),
    )
    trained, data = loop.train(config, resume=None).model, prepare(config.data)
    tokens, mask = trained.padded(
        trained.tokenize(data.sentences("train", 1024)), trained.max_length
    )
    limit = trained.compiled(_limit)(trained.params, tokens, mask)
    fitted = dataclasses.replace(trained, params={**trained.params, "limit": limit}, _compiled={})
    texts = data.sentences("test", trial.sentences)
    outside = default_grammar().sentences(OUTSIDE, trial.sentences)
    found = choice(fitted, outside, grammar=True)
    scores = {
        **{name: value for name, value in vars(trial).items() if name != "run_dir"},
        **reconstruction_scores(texts, fitted.reconstruct(texts, clean=False)),
        **vector_usage(fitted, texts),
        "elbo_token": evidence_bound(fitted, texts)["elbo_token"],
        **choice_scores(found or {}),
    }
    write_whole(trial.run_dir / "trial.json", json.dumps(scores, indent=1) + "\n")
    return scores


def _limit(model: WindowGateNVAE, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return model.limit_of(model.score(tokens, mask), mask)


if __name__ == "__main__":
    print(json.dumps(run(tyro.cli(Trial)), indent=1))
