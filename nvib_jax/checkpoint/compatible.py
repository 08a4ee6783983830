"""Checks that a checkpoint belongs to the model, the run and the data that it is read for."""

import json
from pathlib import Path
from typing import Any

from nvib_jax.checkpoint.description import Description, config_of
from nvib_jax.config import Config
from nvib_jax.effects import without_effect
from nvib_jax.presets import to_json

# Fields that may differ between a run and its continuation; those of `mesh` may too.
_FREE = {
    *("run_dir", "steps", "log_every", "eval_every", "eval_sentences", "cache_dir"),
    "digest",  # runs of 0.1.0 lack it, so the tokenizer and the buckets are compared instead
    *("keep_checkpoints", "keep_best", "keep_every", "bad_step", "watchdog"),
}


def check_shapes(description: Description, meta: dict[str, Any], folder: Path) -> None:
    """Check that the saved parameters have the names, dtypes and shapes of this version's model."""
    found = meta["fingerprints"]["params"]
    # A path is "['name']", and a value is "digits dtype[shape]".
    saved = {path[2:-2]: value.split(" ", 1)[1] for path, value in found.items()}
    differ = [
        f"{name} is saved as {saved.get(name)}, the config makes it {array.dtype}{[*array.shape]}"
        for name, array in description.structure.shapes.items()
        if saved.get(name) != f"{array.dtype}{[*array.shape]}"
    ]
    if differ:
        raise ValueError(f"{folder} is of another model: {'; '.join(differ)}")


def check_same_run(description: Description, meta: dict[str, Any], folder: Path) -> None:
    """A continuation may run longer and elsewhere and log otherwise; all else must be as it was."""
    if differ := _differences(description.config, config_of(meta, folder)):
        raise ValueError(
            f"{folder} is of another config: {'; '.join(differ)}; say the same again, or name "
            "another run with --train.run-dir"
        )
    now = description.to_json()
    if differ := [n for n in ("tokenizer", "buckets") if now[n] != meta[n]]:
        raise ValueError(
            f"{folder} is of other data: its {' and '.join(differ)} differ; "
            "has the text changed since?"
        )


def _differences(config: Config, saved: Config) -> list[str]:
    """A phrase for each field that differs, may not, and is read by one of both.

    What neither reads may differ, because versions change defaults: 0.1.0 cleaned otherwise.
    """
    wanted, found = _flat(config), _flat(saved)
    idle = without_effect(config).keys() & without_effect(saved).keys()
    return [
        f"{name} is {wanted[name]!r}, saved as {found[name]!r}"
        for name in wanted
        if name not in idle
        and wanted[name] != found[name]
        and name.split(".")[-1] not in _FREE
        and not name.startswith("mesh.")
    ]


def _flat(config: Config) -> dict[str, Any]:
    out: dict[str, Any] = {}

    def add(tree: dict[str, Any], prefix: str) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                add(value, f"{prefix}{name}.")
            else:
                out[prefix + name] = value

    add(json.loads(to_json(config)), "")
    return out
