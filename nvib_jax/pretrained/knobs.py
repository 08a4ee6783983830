"""A treated model: knobs, which are numbers by name, and the model under them.

A knob is a reading's tau, a scale of attention's logits, or a temperature of the output. All are
arguments of one compiled function, so that other numbers compile nothing, and have gradients.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from nvib_jax.checks import check_choice
from nvib_jax.models.params import Params, merge
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.batches import Batch
from nvib_jax.pretrained.model import PretrainedModel
from nvib_jax.pretrained.passes import predicted, states_of
from nvib_jax.reading import Reading, Tau

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
    keys: jax.Array | None = None,
    *,
    form: str,
) -> dict[str, jax.Array]:
    """What a treated model says of each token of a batch.

    Args:
      graph, params: the model.
      knobs: numbers by name.
      priors: `EmpiricalPrior`s by the attention's name.
      batch: B texts.
      keys: of passes with dropout, whose probabilities are averaged; None is one pass without.
      form: of the readings.

    Returns:
      "log_p" of the token and "log_most" of the likeliest, float32, and "counted", bool, (B, T).
    """
    module = merge(graph, scaled(params, knobs))
    about = module.architecture
    readings = traced_readings(about.attentions, priors, knobs, form)

    def passed(key: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        view = View(readings, key=key, rate=about.dropout)
        states, wanted, counted = states_of(module, batch, view)
        logits = module.logits(states) / knobs.get("temperature", jnp.float32(1.0))
        return logits, wanted, counted

    logits, wanted, counted = passed(None if keys is None else keys[0])
    if keys is not None:
        logits = summed(lambda key: passed(key)[0], keys, logits)
    said = predicted(logits, wanted)
    return {"log_p": said.log_p, "log_most": said.log_most, "counted": counted}


def summed(
    logits_of: Callable[[jax.Array], jax.Array], keys: jax.Array, first: jax.Array
) -> jax.Array:
    """Logits (..., V) of the mean of the probabilities of several passes.

    The likeliest token of the mean may be the likeliest of no pass. What is returned is the log of
    the sum, which differs from that of the mean by a constant.

    Args:
      logits_of: the logits of a pass by its key.
      keys: one for each pass.
      first: the logits by the first of them.
    """

    def add(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return jnp.logaddexp(total, jax.nn.log_softmax(logits_of(key), axis=-1)), None

    return jax.lax.scan(add, jax.nn.log_softmax(first, axis=-1), keys[1:])[0]
