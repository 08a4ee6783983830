"""The search for a model's taus on texts to develop on; and, by the same search, their rivals.

A trial is one pass over the texts, in which they are scored, or written anew and compared with
their targets. Trial 0 is always the model as it is, so that nothing that is worse on these texts is
ever chosen.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nvib_jax.checks import check_choice
from nvib_jax.files import write_whole
from nvib_jax.models.params import Params
from nvib_jax.pretrained.batches import Batch
from nvib_jax.pretrained.knobs import KINDS, Knobs, knob_names, scaled, taus, treated
from nvib_jax.pretrained.model import PretrainedModel
from nvib_jax.pretrained.overlap import SCORES
from nvib_jax.pretrained.readings import Priors
from nvib_jax.progress import track
from nvib_jax.reading import Tau

Method = Literal["gradient", "random", "halving"]
METHODS = ("gradient", "random", "halving")
Objective = Literal["nats", "bleu", "chrf", "rouge1", "rouge2", "rougeL"]
OBJECTIVES = ("nats", *SCORES)


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
      knobs: the best numbers by name, "alpha.encoder", "temperature".
      figure: of the objective with them, on the texts that were searched on.
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
    objective: Objective = "nats",
    trials: int = 48,
    seed: int = 0,
    folder: str | Path | None = None,
) -> Search:
    """The knobs with the least nats a token on these texts, or with the best texts written.

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
      objective: "nats" a token, of which there should be few; or a score of what the model writes
        (BLEU, chrF, ROUGE), of which there should be much, and which has no gradient.
      trials: passes over the texts; steps of all restarts together, for "gradient".
      seed: of the draws; the same seed has the same trials.
      folder: where `trials.jsonl` is kept, from which an interrupted search goes on.

    Raises:
      ValueError: a name that is none of the choices, a prior of other weights, or an objective that
        the model, the method or a knob does not go with.
    """
    check_choice("method", method, METHODS)
    check_choice("objective", objective, OBJECTIVES)
    if objective != "nats":
        _check_written(model, objective, method, kinds)
    if prior.digest != model.digest:
        raise ValueError(f"the prior was measured with other weights than those of {model.name}")
    if trials < 1:
        raise ValueError(f"trials is {trials}; wanted at least 1")
    names = knob_names(model, kinds, per)
    measured: _Nats | _Written
    if objective == "nats":
        measured = _Nats(model, prior, texts, targets, form)
    else:
        measured = _Written(model, prior, texts, targets or (), form, objective)
    said = {"kinds": list(kinds), "method": method, "per": per, "form": form, "seed": seed}
    said["objective"] = objective
    log = _Log(Path(folder) / "trials.jsonl" if folder else None, said)
    off = {name: KINDS[name.partition(".")[0]].off for name in names}
    log.trial(0, off, lambda: measured.figure(off))
    if isinstance(measured, _Nats) and method == "gradient":
        _descend(measured, names, trials, seed, log)
    else:
        _draw(measured, names, trials, seed, log, halving=method == "halving")
    # A trial on a part of the texts is no trial on all of them: they may be easier.
    whole = [trial for trial in log.trials if trial["share"] == 1]
    best = min(whole, key=lambda trial: measured.sign * trial["figure"])
    return Search(best["knobs"], best["figure"], log.trials, form)


def _check_written(
    model: PretrainedModel, objective: str, method: str, kinds: Sequence[str]
) -> None:
    """Raise ValueError unless texts can be written and told apart by these knobs."""
    if model.architecture.kind != "seq2seq":
        raise ValueError(
            f"objective is {objective!r}, of texts that are written for others, which a "
            f"{model.architecture.family} model does not do; wanted 'nats'"
        )
    if method == "gradient":
        raise ValueError(
            f"objective is {objective!r}, which has no gradient; wanted method 'random' or "
            "'halving', or objective 'nats'"
        )
    if "temperature" in kinds:
        raise ValueError(
            f"objective is {objective!r}, and a temperature of the output changes no text; wanted "
            "kinds without it, or objective 'nats'"
        )


class _Nats:
    """Nats a token of treated models on fixed texts; few are good."""

    sign = 1

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


class _Written:
    """A score of what treated models write for fixed texts; much is good."""

    sign = -1

    def __init__(self, model, prior, texts, targets, form, name):
        model.rows(texts, targets)  # says what is wrong with them
        self.model, self.prior, self.form, self.score = model, prior, form, SCORES[name]
        self.texts, self.targets = list(texts), list(targets)

    def figure(self, knobs: Knobs, share: float = 1.0) -> float:
        """The score, on this share of the texts."""
        every = max(round(1 / share), 1)
        said = chosen(self.model, self.prior, Search(knobs, 0.0, form=self.form)).generate(
            self.texts[::every]
        )
        return self.score(said, self.targets[::every])


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
    objective: _Nats | _Written,
    names: list[str],
    trials: int,
    seed: int,
    log: _Log,
    *,
    halving: bool,
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
        order = sorted(figures, key=lambda index: objective.sign * figures[index])
        kept = order[: max(len(left) // 3, 1)]
        left = [(index, knobs) for index, knobs in left if index in kept]


def _descend(
    objective: _Nats, names: list[str], trials: int, seed: int, log: _Log, restarts: int = 3
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
    plain = dataclasses.replace(model, readings={})
    read = plain.reinterpret(prior, tau=found.tau, form=found.form)
    if all(found.knobs[name] == 1 for name in found.knobs if name.startswith("scale.")):
        return read
    return read.with_params(scaled(model.params, found.knobs))
