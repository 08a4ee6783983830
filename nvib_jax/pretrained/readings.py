"""Which attentions are read how: names to `Tau`, priors of all attentions, and both as files."""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.attention.inputs import FORMS
from nvib_jax.checks import check_choice
from nvib_jax.files import draft_of, write_whole
from nvib_jax.modules.nvib import PRIOR_ARRAYS
from nvib_jax.pretrained.bottleneck import Bottleneck
from nvib_jax.reading import EmpiricalPrior, Reading, Tau
from nvib_jax.types import Prior

ARRAYS, DESCRIPTION = "reading.safetensors", "reading.json"
HERE = "."  # readings of the model in the same folder


@dataclass(frozen=True)
class Priors:
    """The empirical priors of a model's attentions.

    Attributes:
      priors: by the attention's name.
      digest: of the weights that they were measured with.
    """

    priors: Mapping[str, EmpiricalPrior]
    digest: str

    def __post_init__(self) -> None:
        for name, prior in self.priors.items():
            if not np.isfinite(np.asarray(prior.prior.log_variance)).all():
                raise ValueError(f"the prior of {name} is not finite")


def readings(
    priors: Priors, taus: Mapping[str, Tau], form: str, names: tuple[str, ...]
) -> dict[str, Reading]:
    """The reading of each attention that is not the identity.

    Args:
      priors: of all attentions.
      taus: by an attention's name, "encoder.0.self", by "encoder", "decoder" or "cross", or by
        "all"; the longest name that fits wins.
      form: one of `FORMS`.
      names: of the model's attentions.

    Raises:
      ValueError: a name that fits no attention, or a tau that is no number.
    """
    check_choice("form", form, FORMS)
    groups = {"all", *names, *(name.split(".")[0] for name in names)}
    for name, tau in taus.items():
        if name not in groups:
            near = difflib.get_close_matches(name, sorted(groups), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"tau names {name!r}; wanted one of {', '.join(sorted(groups))}{hint}")
        _check(name, tau)
    found = {}
    for name in names:
        fits = [n for n in (name, name.split(".")[0], "all") if n in taus]
        if fits and not is_identity(taus[fits[0]]):
            found[name] = Reading(priors.priors[name].prior, taus[fits[0]], form)
    return found


def is_identity(tau: Tau) -> bool:
    """Whether the numbers of a tau say to read an attention as it is."""
    return bool(tau.alpha == math.inf and tau.sigma == 0 and tau.mean == 1)


def _check(name: str, tau: Tau) -> None:
    for field, least, most in (("alpha", -math.inf, math.inf), ("sigma", 0, 1e3), ("mean", 0, 1)):
        value = float(getattr(tau, field))
        if math.isnan(value) or not least <= value <= most or value == -math.inf:
            wanted = "a number or infinity" if field == "alpha" else f"{least} to {most:g}"
            raise ValueError(f"tau of {name}: {field} is {value}; wanted {wanted}")


def save(
    folder: str | Path, found: Mapping[str, Reading | Bottleneck], about: Mapping[str, Any]
) -> None:
    """Write readings, given or learned, as `reading.safetensors` and `reading.json`.

    Args:
      folder: made if missing.
      found: by the attention's name.
      about: what else to say: the model and its digest.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays, taus = {}, {}
    for name, reading in found.items():
        for field in PRIOR_ARRAYS:
            arrays[f"{name}.{field}"] = np.asarray(getattr(reading.prior, field), order="C")
        if isinstance(reading, Bottleneck):
            for field, array in reading.maps.items():
                arrays[f"{name}.{field}"] = np.asarray(array, order="C")
        else:
            taus[name] = {n: float(getattr(reading.tau, n)) for n in ("alpha", "sigma", "mean")}
    with draft_of(folder / ARRAYS) as draft:
        save_file(arrays, draft)
    forms = {found[name].form for name in taus}  # type: ignore[union-attr]
    form = next(iter(forms), "expected_logit")
    learned = [name for name in found if name not in taus]
    content = {**about, "form": form, "tau": taus, "learned": learned}
    write_whole(folder / DESCRIPTION, json.dumps(content, indent=1) + "\n")


def open_saved(folder: str | Path) -> tuple[dict[str, Reading | Bottleneck], dict[str, Any]]:
    """The inverse of `save`: (readings, what else was said)."""
    from safetensors.numpy import load_file

    folder = Path(folder)
    about = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    arrays = load_file(folder / ARRAYS)
    found: dict[str, Reading | Bottleneck] = {}
    taus = about.pop("tau")
    for name in (*taus, *about.pop("learned")):
        fields: dict[str, Any] = {
            key.removeprefix(f"{name}."): jnp.asarray(value)
            for key, value in arrays.items()
            if key.rpartition(".")[0] == name
        }
        prior = Prior(**{field: fields.pop(field) for field in PRIOR_ARRAYS})
        if name in taus:
            found[name] = Reading(prior, Tau(**taus[name]), about["form"])
        else:
            found[name] = Bottleneck.of(prior, fields)
    return found, about


def traced(found: Mapping[str, Reading | Bottleneck]) -> dict[str, Reading | Bottleneck]:
    """The readings with every number an array, so that other numbers compile nothing anew."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), dict(found))
