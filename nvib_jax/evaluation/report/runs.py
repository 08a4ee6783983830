"""Reads run folders and groups runs that differ only in their seed to settings."""

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nvib_jax.presets import from_json
from nvib_jax.training.records import records_of

_KNOBS = {
    "NVAE": "model.alpha_delta",
    "VTV": "objective.lambda_gaussian",
    "VTP": "model.pool",
    "VTS": "model.stride_share",
    "VTQ": "model.latent_queries",
    "VQ": "model.stride_share",
    "AAE": "objective.encoder_noise",
}
# Fields that may differ between the runs of a setting.
_FREE = {"train.seed", "train.run_dir", "train.log_every", "train.keep_checkpoints"}


@dataclass(frozen=True)
class Run:
    """The content of one run folder.

    Attributes:
      folder: its path.
      name: the name in its evaluation, or else the folder's.
      label: the name, with more added if that is needed to be unique.
      config: flat, with keys like "model.dim"; empty if unknown.
      metrics: the records of `metrics.jsonl`.
      evaluation: the content of `evaluation.json`; empty if there is none.
      final: the figures of `scores.json`, which a run writes at its end, on validation sentences;
        empty if it has not ended.
    """

    folder: Path
    name: str
    label: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any]
    final: dict[str, Any] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        """The step at which its curves end; 0 if there are none."""
        return max((int(record["step"]) for record in self.metrics), default=0)

    @property
    def scored_step(self) -> int | None:
        """The step whose parameters were evaluated; None if unknown, as in runs before 0.2."""
        return self.evaluation.get("step")

    @property
    def ramp(self) -> int:
        """The step from which the training loss has its final weights; 0 if it always has.

        A cyclic schedule returns to zero weights again and again, so it is the last step then.
        """
        objective = {
            name.removeprefix("objective."): value
            for name, value in self.config.items()
            if name.startswith("objective.")
        }
        ends = [
            objective.get("capacity_steps") or 0,
            (objective.get("alpha_delta_start") is not None)
            * objective.get("alpha_delta_steps", 0),
        ]
        if objective.get("anneal") in ("linear", "cosine"):
            ends.append(objective.get("anneal_start", 0) + objective.get("anneal_steps", 0))
        return self.last_step if objective.get("anneal") == "cyclic" else max(ends)

    @property
    def kind(self) -> str:
        """The kind of the latent, such as "NVAE"; empty if unknown."""
        return self.evaluation.get("kind") or self.config.get("model.kind") or ""

    def part(self, name: str) -> Any:
        """A part of the evaluation; None if it is missing or empty."""
        return self.evaluation.get(name) or None

    def score(self, name: str) -> float:
        """One of the evaluation's scores; NaN if it is missing.

        "rate_token" is what the bound pays for the latent, so that distortion plus rate is the
        negative bound. "iwae_token" is computed from "iwae_sentence" if it is missing. The names of
        scores of samples may begin with "sample_".
        """
        scores = self.part("scores") or {}
        if name == "rate_token":
            return self.score("reconstruction_token") - self.score("elbo_token")
        if name == "iwae_token" and name not in scores:
            per_sentence = self.score("elbo_token") / (self.score("elbo_sentence") or float("nan"))
            return self.score("iwae_sentence") * per_sentence
        value = scores.get(name, scores.get(f"sample_{name}"))
        return float("nan") if value is None else float(value)

    def score_or_final(self, name: str) -> tuple[float, bool]:
        """(a score, or else the one in `scores.json`; whether it is from there)."""
        measured = name in (self.part("scores") or {}) or math.isfinite(self.score(name))
        if measured or self.final.get(name) is None:
            return self.score(name), False
        return float(self.final[name]), True


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in their seed.

    Attributes:
      label: a name that no other setting has.
      kind: the kind of the latent.
      knob: the field that sets the bottleneck's strength and its value, such as ("alpha_delta",
        0.3); None if unknown.
      runs: at least one.
    """

    label: str
    kind: str
    knob: tuple[str, Any] | None
    runs: list[Run]


def read_run(folder: Path) -> Run:
    """Read a run's files, of which some may be missing.

    Raises:
      FileNotFoundError: there are neither metrics nor an evaluation.
      ValueError: the evaluation is not a JSON object.
    """
    metrics, evaluation = folder / "metrics.jsonl", folder / "evaluation.json"
    if not metrics.is_file() and not evaluation.is_file():
        raise FileNotFoundError(f"{folder} is no run: neither {metrics.name} nor {evaluation.name}")
    scored = _object(evaluation)
    config = _flat(_complete(scored.get("config") or _object(folder / "config.json")))
    name = str(scored.get("name") or folder.resolve().name)
    final = _object(folder / "scores.json").get("trained")
    final = final if isinstance(final, dict) else {}
    return Run(folder, name, name, config, _records(metrics), scored, final)


def group(runs: Sequence[Run]) -> list[Setting]:
    """Group runs to settings, in the order of their first runs; give all of them unique labels."""
    found: dict[Any, list[Run]] = {}
    for run in runs:
        same = {k: v for k, v in run.config.items() if k not in _FREE}
        split = run.evaluation.get("split")
        alike = json.dumps([run.kind, split, same], sort_keys=True) if same else run.folder
        found.setdefault(alike, []).append(run)
    settings = []
    for members in found.values():
        kind = members[0].kind
        knob_field = _KNOBS.get(kind, "")
        value = members[0].config.get(knob_field)
        knob = None if value is None else (knob_field.split(".")[-1], value)
        settings.append(Setting(_common([run.name for run in members]), kind, knob, members))
    knobs = [" ".join(map(str, s.knob or ())) for s in settings]
    folders = [s.runs[0].folder.as_posix() for s in settings]
    names = _unique([(s.label, k, f) for s, k, f in zip(settings, knobs, folders, strict=True)])
    return [
        replace(s, label=name, runs=_labelled(name, s.runs))
        for name, s in zip(names, settings, strict=True)
    ]


def _labelled(setting: str, runs: list[Run]) -> list[Run]:
    if len(runs) == 1:
        names = [setting]
    else:
        seeds = [f"seed {run.config.get('train.seed', '?')}" for run in runs]
        folders = [run.folder.as_posix() for run in runs]
        names = _unique([(f"{setting}, {s}", f) for s, f in zip(seeds, folders, strict=True)])
    return [replace(run, label=name) for name, run in zip(names, runs, strict=True)]


def _unique(choices: Sequence[tuple[str, ...]]) -> list[str]:
    """A unique label for each tuple: its first word, and more of them as long as labels repeat."""
    labels = [words[0] for words in choices]
    for more in range(1, len(choices[0])):
        twice = {label for label in labels if labels.count(label) > 1}
        labels = [
            f"{label} {words[more]}".strip() if label in twice else label
            for label, words in zip(labels, choices, strict=True)
        ]
    return labels


def _common(names: Sequence[str]) -> str:
    """The name of runs that differ in their seed, without the seed: "a-0.3" of "a-0.3-seed1"."""
    if len(set(names)) > 1:
        bare = {re.sub(r"[-_. ]*(s|seed)?[-_. ]*\d+$", "", name) for name in names}
        return min(bare) if len(bare) == 1 and all(bare) else names[0]
    return names[0]


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}; wanted a JSON object")
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`, without lines that are not records, such as one cut off."""
    return [record for _, record in records_of(path) if record is not None]


def _complete(config: dict[str, Any]) -> dict[str, Any]:
    """Add the fields that a config of an earlier version lacks, with today's defaults."""
    try:
        return asdict(from_json(json.dumps(config))) if config else config
    except ValueError:  # it has fields that no longer exist, so it is shown unchanged
        return config


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict with dotted names for its keys, flat."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def runs_of(settings: Sequence[Setting]) -> list[tuple[int, Run]]:
    """(place of its setting, run) for every run."""
    return [(i, run) for i, setting in enumerate(settings) for run in setting.runs]


def with_part(
    settings: Sequence[Setting], name: str
) -> tuple[list[tuple[int, Run, Any]], list[str]]:
    """The runs whose evaluation has a part, as (place of the setting, run, part); and the labels of
    the other runs.
    """
    runs = runs_of(settings)
    found = [(i, run, run.part(name)) for i, run in runs if run.part(name)]
    return found, [run.label for _, run in runs if not run.part(name)]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """(mean, sample standard deviation); the latter is NaN for a single value."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return statistics.mean(values), deviation
