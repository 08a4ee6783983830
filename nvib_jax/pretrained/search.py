"""The search for a model's taus on texts to develop on; and, by the same search, their rivals.

A trial is one pass over the texts and compiles nothing, because taus are arguments of the compiled
function. They have gradients, too. What is searched for are *knobs*, numbers by name: a reading's
taus, a scale of attention's logits, a temperature. Trial 0 is always the model as it is, so that
nothing that is worse on these texts is ever chosen.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nvib_jax.checks import check_choice
from nvib_jax.files import write_whole
from nvib_jax.models.params import Params, merge
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.batches import Batch
from nvib_jax.pretrained.model import PretrainedModel, states_of
from nvib_jax.pretrained.readings import Priors
from nvib_jax.progress import track
from nvib_jax.reading import Reading, Tau

Method = Literal["gradient", "random", "halving"]
METHODS = ("gradient", "random", "halving")
Knobs = dict[str, float]


@dataclass(frozen=True)
class Kind:
    """A kind of knob.

    Attributes:
      off: the value at which the model is as it is.
      box: least and most of a random draw.
      start: where a descent begins.
      to, back: from an unbounded number to the knob, and back.
    """

    off: float
    box: tuple[float, float]
    start: float
    to: Callable[[Any], Any]
    back: Callable[[float], float]


# Attention's and the output's temperature are positive, so that their logarithms are searched.
KINDS = {
    "alpha": Kind(math.inf, (-3.0, 6.0), 3.0, lambda x: x, lambda x: x),
    "sigma": Kind(0.0, (0.0, 0.5), 0.1, jax.nn.softplus, lambda y: math.log(math.expm1(y))),
    "scale": Kind(1.0, (0.5, 1.5), 1.0, jnp.exp, math.log),
    "temperature": Kind(1.0, (0.5, 3.0), 1.0, jnp.exp, math.log),
}


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
      knobs: the best numbers by name, "alpha.encoder", "temperature".
      figure: nats a token with them, on the texts that were searched on.
      trials: every trial, its knobs and figure, the first of them without a treatment.
      form: of the readings.
    """

    knobs: Knobs
    figure: float
    trials: list[dict[str, Any]] = field(default_factory=list)
    form: str = "expected_logit"

    @property
    def tau(self) -> dict[str, Tau]:
        """The taus for `PretrainedModel.reinterpret`, by the attention's name."""
        return taus(self.knobs)


def knob_names(model: PretrainedModel, kinds: Sequence[str], per: str) -> list[str]:
    """Names of the knobs of these kinds, by type of attention or by layer.

    Args:
      model: whose attentions they are.
      kinds: of `KINDS`; "temperature" is one knob, "scale" always by type.
      per: "type" or "layer".
    """
    check_choice("per", per, ("type", "layer"))
    types = list(dict.fromkeys(name.split(".")[0] for name in model.attentions))
    names = []
    for kind in kinds:
        check_choice("kind", kind, tuple(KINDS))
        if kind == "temperature":
            names.append(kind)
        else:
            where = types if per == "type" or kind == "scale" else list(model.attentions)
            names += [f"{kind}.{name}" for name in where]
    return names


def taus(knobs: Mapping[str, Any]) -> dict[str, Tau]:
    """The `Tau` of each attention that the knobs name."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in knobs.items():
        kind, _, where = name.partition(".")
        if kind in ("alpha", "sigma"):
            found.setdefault(where, {})[kind] = value
    return {where: Tau(**{"alpha": math.inf, **tau}) for where, tau in found.items()}


def traced_readings(
    attentions: Sequence[str], priors: Mapping[str, Any], knobs: Mapping[str, Any], form: str
) -> dict[str, Reading]:
    """The readings of the taus among the knobs; their numbers may be traced.

    Args:
      attentions: names of the model's.
      priors: `EmpiricalPrior`s by name.
      knobs: numbers by name.
      form: of all readings.
    """
    by_name, found = taus(knobs), {}
    for name in attentions:
        tau = by_name.get(name, by_name.get(name.split(".")[0]))
        if tau is not None:
            numbers = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tau)
            found[name] = Reading(priors[name].prior, numbers, form)
    return found


def scaled(params: Params, knobs: Mapping[str, Any]) -> Params:
    """The weights with each kind of attention's logits multiplied by its "scale" among the knobs.

    That is an inverse temperature of attention, written into the queries' projections.
    """

    def scale(name: str) -> Any:
        if ".attention.query." in name:
            return knobs.get(f"scale.{name.split('.')[0]}", 1.0)
        return knobs.get("scale.cross", 1.0) if ".cross.query." in name else 1.0

    def one(name: str, param: jax.Array) -> jax.Array:
        by = scale(name)
        return (
            param if isinstance(by, float) and by == 1.0 else param * jnp.asarray(by, param.dtype)
        )

    return {name: one(name, param) for name, param in params.items()}


def treated(
    graph: Any,
    params: Params,
    knobs: dict[str, jax.Array],
    priors: dict[str, Any],
    batch: Batch,
    key: jax.Array | None = None,
    *,
    form: str,
) -> dict[str, jax.Array]:
    """What a treated model says of each token of a batch.

    Args:
      graph, params: the model.
      knobs: numbers by name.
      priors: `EmpiricalPrior`s by the attention's name.
      batch: B texts.
      key: of dropout; None is none.
      form: of the readings.

    Returns:
      "log_p" of the token and "log_most" of the likeliest, float32, and "counted", bool, (B, T).
    """
    module = merge(graph, scaled(params, knobs))
    about = module.architecture
    readings = traced_readings(about.attentions, priors, knobs, form)
    states, wanted, counted = states_of(module, batch, View(readings, key=key, rate=about.dropout))
    logits = module.logits(states) / knobs.get("temperature", jnp.float32(1.0))
    log_p = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_p, wanted[..., None], axis=-1)[..., 0]
    return {"log_p": picked, "log_most": jnp.max(log_p, axis=-1), "counted": counted}


def _nats(graph: Any, params: Params, knobs: Any, *arrays: Any, form: str) -> Any:
    """(nats of a batch, its tokens)."""
    found = treated(graph, params, knobs, *arrays, form=form)
    nats = jnp.sum(jnp.where(found["counted"], -found["log_p"], 0.0))
    return nats, jnp.sum(found["counted"])


def _nats_and_gradient(graph: Any, params: Params, knobs: Any, *arrays: Any, form: str) -> Any:
    return jax.value_and_grad(lambda k: _nats(graph, params, k, *arrays, form=form), has_aux=True)(
        knobs
    )


def search(
    model: PretrainedModel,
    prior: Priors,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    *,
    kinds: Sequence[str] = ("alpha",),
    method: Method = "gradient",
    per: str = "type",
    form: str = "expected_logit",
    trials: int = 48,
    seed: int = 0,
    folder: str | Path | None = None,
) -> Search:
    """The knobs with the least nats a token on these texts.

    Args:
      model: to be treated.
      prior: of its attentions.
      texts, targets: to develop on.
      kinds: of knobs: "alpha" and "sigma" are a reading's, "scale" (of attention's logits) and
        "temperature" (of the output) its rivals.
      method: "gradient" descends (Adam, three restarts); "random" draws from boxes; "halving" draws
        the same, and tries all of them on a ninth of the texts, the best third on a third, and the
        best third of those on all.
      per: "type" of attention, or "layer".
      form: of the readings.
      trials: passes over the texts; steps of all restarts together, for "gradient".
      seed: of the draws; the same seed has the same trials.
      folder: where `trials.jsonl` is kept, from which an interrupted search goes on.

    Raises:
      ValueError: a name that is none of the choices, or a prior of other weights.
    """
    check_choice("method", method, METHODS)
    if prior.digest != model.digest:
        raise ValueError(f"the prior was measured with other weights than those of {model.name}")
    if trials < 1:
        raise ValueError(f"trials is {trials}; wanted at least 1")
    names = knob_names(model, kinds, per)
    objective = _Objective(model, prior, texts, targets, form)
    said = {"kinds": list(kinds), "method": method, "per": per, "form": form, "seed": seed}
    log = _Log(Path(folder) / "trials.jsonl" if folder else None, said)
    off = {name: KINDS[name.partition(".")[0]].off for name in names}
    log.trial(0, off, lambda: objective.figure(off))
    if method == "gradient":
        _descend(objective, names, trials, seed, log)
    else:
        _draw(objective, names, trials, seed, log, halving=method == "halving")
    whole = [trial for trial in log.trials if trial["share"] == 1]
    best = min(whole, key=lambda trial: trial["figure"])
    return Search(best["knobs"], best["figure"], log.trials, form)


class _Objective:
    """Nats a token of treated models on fixed texts."""

    def __init__(self, model, prior, texts, targets, form):
        rows, others = model.rows(texts, targets)
        self.batches = [batch for _, batch in model.batches(rows, others)]
        self.given = (dict(prior.priors),)
        self.params = model.params
        self._nats = model.compiled(_nats, form=form)
        self._grad = model.compiled(_nats_and_gradient, form=form)

    def figure(self, knobs: Knobs, share: float = 1.0) -> float:
        """Nats a token, on this share of the batches."""
        found = [
            self._nats(self.params, _arrays(knobs), *self.given, batch)
            for batch in self._part(share)
        ]
        nats, count = (float(sum(map(float, part))) for part in zip(*found, strict=True))
        return nats / count

    def gradient(self, knobs: Knobs) -> tuple[float, Knobs]:
        """Nats a token and their gradient by the knobs."""
        nats, count = 0.0, 0.0
        total = dict.fromkeys(knobs, 0.0)
        for batch in self.batches:
            (value, tokens), grads = self._grad(self.params, _arrays(knobs), *self.given, batch)
            nats, count = nats + float(value), count + float(tokens)
            total = {name: total[name] + float(grads[name]) for name in total}
        return nats / count, {name: value / count for name, value in total.items()}

    def _part(self, share: float) -> list[Batch]:
        # Every ninth batch, and not the first ninth, because batches are sorted by length.
        return self.batches[:: max(round(1 / share), 1)]


def _arrays(knobs: Knobs) -> dict[str, jax.Array]:
    return {name: jnp.float32(value) for name, value in knobs.items()}


class _Log:
    """The trials so far, kept in a file as they are made."""

    def __init__(self, path: Path | None, said: dict[str, Any]):
        self.path, self.said = path, said
        self.trials: list[dict[str, Any]] = []
        self._known: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            if not text.endswith("\n"):  # what follows is no part of a line that was cut off
                write_whole(path, text + "\n")
            for line in text.splitlines():
                try:
                    trial = json.loads(line)
                    self._known[json.dumps([trial["search"], trial["trial"]])] = trial
                except (ValueError, TypeError, KeyError):
                    continue  # the line that was being written

    def trial(
        self, index: Any, knobs: Knobs, run: Callable[[], float], share: float = 1.0
    ) -> float:
        """The figure of a trial, from the file if it was made before."""
        name = json.dumps([self.said, index])
        if name not in self._known:
            found = {"search": self.said, "trial": index, "knobs": knobs, "share": share}
            found["figure"] = run()
            self._known[name] = found
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
        self.trials.append(self._known[name])
        return self._known[name]["figure"]


def _draw(
    objective: _Objective, names: list[str], trials: int, seed: int, log: _Log, *, halving: bool
) -> None:
    rng = np.random.default_rng(seed)
    left = []
    for index in range(1, trials + 1):
        knobs = {name: float(rng.uniform(*KINDS[name.partition(".")[0]].box)) for name in names}
        left.append((index, knobs))
    for share in (1 / 9, 1 / 3, 1.0) if halving else (1.0,):
        figures = {}
        for index, knobs in track(left, "trials", total=len(left), unit="trials"):
            label = index if share == 1 else f"{index} on 1/{round(1 / share)}"
            run = lambda knobs=knobs, share=share: objective.figure(knobs, share)  # noqa: E731
            figures[index] = log.trial(label, knobs, run, share)
        kept = sorted(figures, key=figures.__getitem__)[: max(len(left) // 3, 1)]
        left = [(index, knobs) for index, knobs in left if index in kept]


def _descend(
    objective: _Objective, names: list[str], trials: int, seed: int, log: _Log, restarts: int = 3
) -> None:
    """Adam on the knobs' unbounded numbers, from the start and from two draws around it."""
    kinds = {name: KINDS[name.partition(".")[0]] for name in names}
    rng = np.random.default_rng(seed)
    steps = max(trials // restarts, 1)
    optimizer = optax.adam(0.3)
    for restart in range(restarts):
        away = rng.normal(size=len(names)) * (restart > 0)
        x = {
            name: jnp.float32(kinds[name].back(kinds[name].start) + away[i])
            for i, name in enumerate(names)
        }
        state = optimizer.init(x)
        for step in track(range(steps), "descent", total=steps, unit="steps"):
            knobs = {name: float(kinds[name].to(value)) for name, value in x.items()}
            found: dict[str, Any] = {}

            def run(knobs: Knobs = knobs, found: dict[str, Any] = found) -> float:
                figure, found["gradient"] = objective.gradient(knobs)
                return figure

            log.trial([restart, step], knobs, run)
            gradient = found.get("gradient") or objective.gradient(knobs)[1]
            slopes = {name: jax.grad(kinds[name].to)(value) for name, value in x.items()}
            grads = {name: jnp.float32(gradient[name]) * slopes[name] for name in names}
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(grads, state)
            x = optax.apply_updates(x, updates)


def chosen(model: PretrainedModel, prior: Priors, found: Search) -> PretrainedModel:
    """The model as a search would have it: re-read with its taus, its queries scaled.

    A temperature of the output is left out: it changes probabilities, and no text that is written.
    """
    again = dataclasses.replace(model, params=scaled(model.params, found.knobs), readings={})
    return again.reinterpret(prior, tau=found.tau, form=found.form)
