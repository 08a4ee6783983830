"""Fine-tuning with bottlenecks: a task's cross-entropy and the two KLs of every attention.

Each attention begins at an identity (`Bottleneck.identity`), is drawn from in training, and is read
without noise in evaluation, in the form "expected_logit" with geometric weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from nvib_jax.kl import kl_dirichlet, kl_gaussian
from nvib_jax.models.params import Params, merge
from nvib_jax.objective.schedules import anneal
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.batches import Batch
from nvib_jax.pretrained.bottleneck import Bottleneck
from nvib_jax.pretrained.model import PretrainedModel
from nvib_jax.pretrained.passes import cross_entropy
from nvib_jax.pretrained.readings import Priors
from nvib_jax.pretrained.train import LEARNED, TrainingConfig, fit, rows_to_learn
from nvib_jax.reading import Reading, Tau

Train = Literal["nvib", "nvib+norms", "all"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """An optimiser's run, what it trains, and what the bottlenecks cost."""

    train: Train = "nvib"
    """What is trained: the bottlenecks alone, the norms too, or everything. A classifier's head is
    always trained."""
    alpha: float = 3.0
    """Nats that tokens have above their norm at first."""
    sigma: float = 0.1
    """Standard deviation of tokens at first, in those of the data."""
    concentration: float = 1.0
    """Pseudo-count of the prior's component."""
    alpha_delta: float = 1.0
    """Pseudo-counts that every token adds to the prior's."""
    lambda_gaussian: float = 0.001
    """Weight of the Gaussian KL, a dimension and component."""
    lambda_dirichlet: float = 0.1
    """Weight of the Dirichlet KL, a component."""
    anneal_steps: int = 0
    """Steps in which the weights of the KLs rise to these."""
    form: Literal["expected_count", "exact"] = "expected_count"
    """Of the KLs."""
    rank: int = 0
    """Rank of what is learned beside the identity of the means' and the variances' maps; 0 learns
    whole matrices, twice the width squared an attention."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lambda_gaussian", "lambda_dirichlet", "anneal_steps", "rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}; wanted at least 0")


def bottlenecks(
    model: PretrainedModel, prior: Priors, config: FinetuneConfig
) -> dict[str, Bottleneck]:
    """The identity of every attention.

    Raises:
      ValueError: a prior of other weights, an alpha that is not finite, or no sigma.
    """
    if prior.digest != model.digest:
        raise ValueError(f"the prior was measured with other weights than those of {model.name}")
    tau, key = Tau(config.alpha, config.sigma), jax.random.key(config.seed)
    return {
        name: Bottleneck.identity(
            Reading(found.prior, tau),
            head_dim=model.architecture.head_dim,
            concentration=config.concentration,
            alpha_delta=config.alpha_delta,
            rank=config.rank,
            key=jax.random.fold_in(key, index),
        )
        for index, (name, found) in enumerate(prior.priors.items())
    }


def finetune(
    model: PretrainedModel,
    prior: Priors,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    config: FinetuneConfig | None = None,
    *,
    folder: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> PretrainedModel:
    """The model with a bottleneck in every attention, trained on these texts.

    Args:
      model: that writes, or a classifier; it is not changed.
      prior: of its attentions.
      texts, targets, folder, say: as in `train`.
      config: None is `FinetuneConfig()`.

    Raises:
      ValueError: as `train` and `bottlenecks` do.
    """
    about, c = model.architecture, config or FinetuneConfig()
    rows = rows_to_learn(model, texts, targets)
    start = bottlenecks(model, prior, c)
    trained, fixed = _parts(model, start, c.train)
    priors = {name: found.prior for name, found in start.items()}

    def loss(trained: Params, batch: Batch, key: jax.Array, index: jax.Array) -> Any:
        params, found = _joined(trained, fixed, priors)
        draw, drop = jax.random.split(key)
        view = View(found, draw=draw, key=drop, rate=about.dropout)
        nats = cross_entropy(merge(model.graph, params), batch, view, c.label_smoothing)
        gaussian, dirichlet = _costs(view, priors, c.form)
        weight = anneal(index, schedule="linear", steps=c.anneal_steps)
        cost = c.lambda_gaussian * gaussian + c.lambda_dirichlet * dirichlet
        figures = {"nats": nats, "gaussian": gaussian, "dirichlet": dirichlet}
        return nats + weight * cost, figures

    trained = fit(model, trained, loss, rows, c, folder=folder, say=say)
    params, found = _joined(trained, fixed, priors)
    changed = len(fixed) < len(params)
    return (model.with_params(params) if changed else model).with_readings(found)


def _costs(view: View, priors: Any, form: str) -> tuple[jax.Array, jax.Array]:
    """The mean over attentions of KL_G / (S D) and KL_D / S, texts of one batch averaged."""
    gaussian, dirichlet = [], []
    for name, posterior in view.posteriors.items():
        present = jnp.sum(posterior.mask, axis=1).astype(jnp.float32)
        width = posterior.mean.shape[-1]
        gaussian.append(jnp.mean(kl_gaussian(posterior, priors[name], form=form) / present / width))
        dirichlet.append(jnp.mean(kl_dirichlet(posterior, priors[name], form=form) / present))
    count = len(gaussian)
    return sum(gaussian, jnp.float32(0.0)) / count, sum(dirichlet, jnp.float32(0.0)) / count


def _parts(
    model: PretrainedModel, start: dict[str, Bottleneck], train: Train
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """(what is trained, what is not): flat dicts; a bottleneck's maps are "nvib/NAME/FIELD"."""
    maps = {f"{LEARNED}{name}/{f}": a for name, b in start.items() for f, a in b.maps.items()}

    def is_trained(name: str) -> bool:
        head = model.architecture.labels and name.startswith(("pooler.", "classifier."))
        return train == "all" or bool(head) or (train == "nvib+norms" and "norm" in name)

    chosen = {n: p for n, p in model.params.items() if is_trained(n)}
    return maps | chosen, {n: p for n, p in model.params.items() if n not in chosen}


def _joined(trained: dict[str, jax.Array], fixed: Any, priors: Any) -> tuple[Any, Any]:
    """(parameters, bottlenecks): the inverse of `_parts`."""
    params = fixed | {n: p for n, p in trained.items() if not n.startswith(LEARNED)}
    maps: dict[str, dict[str, jax.Array]] = {name: {} for name in priors}
    for path, array in trained.items():
        if path.startswith(LEARNED):
            name, _, field = path.removeprefix(LEARNED).rpartition("/")
            maps[name][field] = array
    found = {name: Bottleneck.of(prior, maps[name]) for name, prior in priors.items()}
    return params, found
