"""Fine-tuning with bottlenecks: a task's cross-entropy and the two KLs of every attention.

Each attention begins at an identity (`Bottleneck.identity`), is drawn from in training, and is read
without noise in evaluation, in the form "expected_logit" with geometric weights.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nvib_jax.kl import kl_dirichlet, kl_gaussian
from nvib_jax.models.params import merge
from nvib_jax.objective.schedules import anneal
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.bottleneck import MAPS, Bottleneck
from nvib_jax.pretrained.model import PretrainedModel, digest_of, states_of
from nvib_jax.pretrained.readings import Priors
from nvib_jax.pretrained.train import TrainingConfig, endless, is_matrix
from nvib_jax.progress import track
from nvib_jax.reading import Reading, Tau

Train = Literal["nvib", "nvib+norms", "all"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """An optimiser's run, what it trains, and what the bottlenecks cost."""

    train: Train = "nvib"
    """What is trained: the bottlenecks alone, the norms too, or everything."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lambda_gaussian", "lambda_dirichlet", "anneal_steps"):
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
    tau = Tau(config.alpha, config.sigma)
    return {
        name: Bottleneck.identity(
            Reading(found.prior, tau),
            head_dim=model.architecture.head_dim,
            concentration=config.concentration,
            alpha_delta=config.alpha_delta,
        )
        for name, found in prior.priors.items()
    }


def finetune(
    model: PretrainedModel,
    prior: Priors,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    config: FinetuneConfig | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> PretrainedModel:
    """The model with a bottleneck in every attention, trained on these texts.

    Args:
      model: of one or two stacks; it is not changed.
      prior: of its attentions.
      texts, targets: as in `train`.
      config: None is `FinetuneConfig()`.
      say: called with a line of text, ten times.

    Raises:
      ValueError: as `train` and `bottlenecks` do.
    """
    about, c, report = model.architecture, config or FinetuneConfig(), say or (lambda line: None)
    if about.kind == "masked":
        raise ValueError(f"a {about.family} model fills gaps; fine-tuning it is not implemented")
    start = bottlenecks(model, prior, c)
    rows, others = model.rows(texts, targets)
    trained, fixed = _parts(model, start, c.train)
    priors = {name: found.prior for name, found in start.items()}
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, c.learning_rate, max(c.steps // 10, 1), c.steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(c.clip),
        optax.adamw(schedule, b2=0.98, weight_decay=c.weight_decay, mask=_decayed),
    )
    graph = model.graph

    @jax.jit
    def step(trained: Any, state: Any, index: jax.Array, batch: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(c.seed), index))
        weight = anneal(index, schedule="linear", steps=c.anneal_steps)

        def loss(trained: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            params, found = _joined(trained, fixed, priors)
            module = merge(graph, params)
            view = View(found, draw=keys[0], key=keys[1], rate=about.dropout)
            states, wanted, counted = states_of(module, batch, view)
            log_p = jax.nn.log_softmax(module.logits(states), axis=-1)
            nats = -jnp.take_along_axis(log_p, wanted[..., None], axis=-1)[..., 0]
            nats = jnp.sum(jnp.where(counted, nats, 0.0)) / jnp.sum(counted, dtype=jnp.float32)
            gaussian, dirichlet = _costs(view, priors, c.form)
            cost = c.lambda_gaussian * gaussian + c.lambda_dirichlet * dirichlet
            terms = {"nats": nats, "gaussian": gaussian, "dirichlet": dirichlet}
            return nats + weight * cost, terms

        (_, terms), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int32 powers
            updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, terms

    state, seen = optimizer.init(trained), []
    stream = endless(rows, others, c, about.pad)
    for index in track(range(c.steps), "fine-tuning", total=c.steps, unit="steps"):
        trained, state, terms = step(trained, state, np.int32(index), next(stream))
        seen.append(terms)
        if (index + 1) % max(c.steps // 10, 1) == 0:
            means = jax.tree.map(lambda *values: float(np.mean(values)), *jax.device_get(seen))
            figures = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            report(f"step {index + 1:,}: {figures}")
            seen.clear()
    params, found = _joined(trained, fixed, priors)
    digest = model.digest if c.train == "nvib" else digest_of(params)
    return dataclasses.replace(model, params=params, digest=digest, readings=found)


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
    maps = {f"nvib/{name}/{f}": getattr(b, f) for name, b in start.items() for f in MAPS}
    chosen = {
        name
        for name in model.params
        if train == "all" or (train == "nvib+norms" and "norm" in name)
    }
    params = dict(model.params)
    return maps | {n: params[n] for n in chosen}, {
        n: p for n, p in params.items() if n not in chosen
    }


def _joined(trained: dict[str, jax.Array], fixed: Any, priors: Any) -> tuple[Any, Any]:
    """(parameters, bottlenecks): the inverse of `_parts`."""
    params = fixed | {n: p for n, p in trained.items() if not n.startswith("nvib/")}
    found = {
        name: Bottleneck(prior, **{f: trained[f"nvib/{name}/{f}"] for f in MAPS})
        for name, prior in priors.items()
    }
    return params, found


def _decayed(params: dict[str, jax.Array]) -> dict[str, bool]:
    """Bottlenecks are not decayed: that would pull their means to 0 and not to the identity."""
    return {n: decay and not n.startswith("nvib/") for n, decay in is_matrix(params).items()}
