"""Finds fields of a config that have no effect, and schedules that the run ends before.

Some fields matter only for one value of another field: `model.pool` only for the latent that pools.
The table below lists them. A run reports those that its preset sets, and such an option on the
command line is an error, because a person who types it expects an effect.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from nvib_jax.config import Config
from nvib_jax.data.config import CleanConfig
from nvib_jax.models.config import NVAEConfig, StackConfig

_LIMITS = "data.clean.min_tokens data.clean.max_tokens"
_CLEAN = " ".join(
    name
    for field in dataclasses.fields(CleanConfig)
    if (name := f"data.clean.{field.name}") not in _LIMITS.split()
)

# Kinds of latent without pseudo-counts; of a kind that is not in this library nothing is known.
_RIVALS = ("T", "VTV", "VTP", "VTS", "VTQ", "VQ", "AAE")
_CERTAIN = ("T", "VQ", "AAE")  # those that draw nothing and have no KL of Gaussians

# fields, whether they are idle, and what they wait for: of an NVAE
_LATENT_RULES: tuple[tuple[str, Callable[[NVAEConfig], bool], str], ...] = (
    ("model.pool", lambda m: m.kind not in ("VTP", "AAE"), "model.kind VTP or AAE"),
    ("model.stride_share", lambda m: m.kind not in ("VTS", "VQ"), "model.kind VTS or VQ"),
    ("model.latent_queries", lambda m: m.kind != "VTQ", "model.kind VTQ"),
    (
        "model.codes model.code_decay model.code_gradient model.commitment model.prior_layers",
        lambda m: m.kind != "VQ",
        "model.kind VQ",
    ),
    ("model.adversary", lambda m: m.kind != "AAE", "model.kind AAE"),
    (
        "model.pseudo_count model.gate model.initial_alpha model.prior_alpha model.alpha_delta "
        "model.threshold objective.alpha_delta_start objective.alpha_delta_steps "
        # The rivals have no pseudo-counts: their Dirichlet KL is 0, their Gaussian one always
        # exact, and how many vectors they have depends on no parameter.
        "objective.lambda_dirichlet objective.dirichlet_form objective.free_dirichlet "
        "objective.capacity_dirichlet objective.dirichlet_from_start objective.gaussian_form "
        "objective.vector_price objective.free_vectors",
        lambda m: m.kind in _RIVALS,
        "model.kind NVAE",
    ),
    (
        "model.initial_variance model.num_samples model.evaluation_form "
        "objective.lambda_gaussian objective.free_gaussian objective.capacity_gaussian "
        "objective.capacity_steps objective.anneal objective.anneal_start objective.anneal_steps "
        "objective.anneal_cycle",
        lambda m: m.kind in _CERTAIN,
        "another model.kind than T, VQ and AAE",
    ),
    (
        "model.gate_share model.gate_window",
        lambda m: m.kind in _RIVALS or m.gate == "none",
        "model.kind NVAE with a model.gate",
    ),
    (
        "model.initial_kept",
        lambda m: m.kind in _RIVALS or m.pseudo_count != "relu",
        "model.kind NVAE with model.pseudo_count relu",
    ),
)
# the same of a model made of an `NVIBStack`
_STACK_RULES: tuple[tuple[str, Callable[[StackConfig], bool], str], ...] = (
    (
        "objective.vector_price objective.free_vectors objective.alpha_delta_start "
        "objective.alpha_delta_steps objective.encoder_noise objective.word_dropout "
        "objective.lambda_mmd objective.mmd_of objective.mmd_bandwidth objective.lambda_sliced",
        lambda m: True,
        "an NVAE",
    ),
    (
        "model.pseudo_count model.initial_alpha model.initial_variance model.prior_alpha "
        "model.alpha_delta model.layer_weights model.evaluation_form model.threshold "
        "model.num_samples model.cross_mask objective.lambda_gaussian objective.lambda_dirichlet "
        "objective.gaussian_form objective.dirichlet_form objective.free_gaussian "
        "objective.free_dirichlet objective.capacity_gaussian objective.capacity_dirichlet "
        "objective.capacity_steps objective.anneal objective.anneal_start objective.anneal_steps "
        "objective.anneal_cycle objective.dirichlet_from_start",
        lambda m: not m.nvib_layers,
        "model.nvib_layers",
    ),
)
# the same of every model
_RULES: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    ("train.weight_decay", lambda c: c.train.optimizer != "adamw", "train.optimizer adamw"),
    ("objective.free_vectors", lambda c: not c.objective.vector_price, "objective.vector_price"),
    (
        "objective.mmd_of objective.mmd_bandwidth",
        lambda c: not c.objective.lambda_mmd,
        "objective.lambda_mmd",
    ),
    (
        "objective.anneal_start objective.anneal_steps objective.dirichlet_from_start",
        lambda c: c.objective.anneal == "constant",
        "another objective.anneal than constant",
    ),
    ("objective.anneal_cycle", lambda c: c.objective.anneal != "cyclic", "objective.anneal cyclic"),
    (
        "objective.alpha_delta_steps",
        lambda c: c.objective.alpha_delta_start is None,
        "objective.alpha_delta_start",
    ),
    (
        "objective.capacity_steps",
        lambda c: _capacities(c) == (None, None),
        "objective.capacity_gaussian or capacity_dirichlet",
    ),
    (
        f"data.train data.validation data.test data.layout data.tokenizer_sentences {_CLEAN}",
        lambda c: c.data.source == "grammar",
        "another data.source than grammar",
    ),
    (_LIMITS, lambda c: c.data.limits is None, "another data.source than grammar, or data.pieces"),
    (
        "data.num_train data.num_validation data.num_test data.seed",
        lambda c: c.data.source != "grammar",
        "data.source grammar",
    ),
    (
        "data.text_feature",
        lambda c: not (c.data.tfds_name or c.data.hf_name),
        "a tfds: or hf: data.source",
    ),
    ("data.tfds_dir", lambda c: not c.data.tfds_name, "a tfds: data.source"),
)


def without_effect(config: Config) -> dict[str, str]:
    """Fields without effect in this config -> the setting that they need to have one.

    >>> without_effect(Config())["model.pool"]
    'model.kind VTP or AAE'
    """
    found = [(names, reason) for names, idle, reason in _RULES if idle(config)]
    model = config.model
    if isinstance(model, NVAEConfig):
        found = [(names, why) for names, idle, why in _LATENT_RULES if idle(model)] + found
    if isinstance(model, StackConfig):
        found = [(names, why) for names, idle, why in _STACK_RULES if idle(model)] + found
    there = {f"model.{field.name}" for field in dataclasses.fields(model)}
    return {
        name: reason
        for names, reason in found
        for name in names.split()
        if name in there or not name.startswith("model.")
    }


def check_typed(arguments: Sequence[str], config: Config) -> None:
    """Check that each option of a command line has an effect.

    Raises:
      ValueError: naming the first one without an effect, and the setting that it needs.
    """
    idle = without_effect(config)
    for word in arguments:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_").replace(".no_", ".")
        if word.startswith("--") and name in idle:
            raise ValueError(f"{word.partition('=')[0]} has no effect without {idle[name]}")


def remarks(config: Config) -> list[str]:
    """A line about fields that are set but have no effect, and one for each schedule that the run
    ends before.
    """
    unread = without_effect(config)
    idle = [name for name in unread if _is_set(config, name)]
    lines = [f"without effect here: {', '.join(idle)}"] if idle else []
    steps, objective = config.train.steps, config.objective
    capacity = _capacities(config)
    ends = (
        ("objective.anneal_steps" not in unread, "objective.anneal_start + anneal_steps",
         objective.anneal_start + objective.anneal_steps),
        (objective.alpha_delta_start is not None, "objective.alpha_delta_steps",
         objective.alpha_delta_steps),
        (capacity != (None, None), "objective.capacity_steps", objective.capacity_steps),
        (True, "train.warmup_steps", config.train.warmup_steps),
    )  # fmt: skip
    return lines + [
        f"the run ends at step {steps} (train.steps), before {name} does, at step {end}"
        for read, name, end in ends
        if read and end > steps
    ]


def _capacities(config: Config) -> tuple[float | None, float | None]:
    """The capacities of both KLs, where there are such KLs."""
    gaussian, dirichlet = config.objective.capacity_gaussian, config.objective.capacity_dirichlet
    kind = config.model.kind if isinstance(config.model, NVAEConfig) else ""
    return gaussian if kind not in _CERTAIN else None, dirichlet if kind not in _RIVALS else None


def _is_set(config: Config, name: str) -> bool:
    """Whether a field is not at its default."""
    part: Any = config
    *sections, field = name.split(".")
    for section in sections:
        part = getattr(part, section)
    default = {f.name: f.default for f in dataclasses.fields(part)}[field]
    return getattr(part, field) != default
