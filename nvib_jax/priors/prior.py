"""`LearnedPrior`: a density fitted to the latents of a trained model, and what is drawn from it."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax.files import draft_of, write_whole
from nvib_jax.generate import DecodingConfig, generate
from nvib_jax.models.params import Params, digest_of, merge, split
from nvib_jax.priors.config import PriorConfig, Sampling
from nvib_jax.priors.densities import DENSITIES
from nvib_jax.priors.points import PointMap
from nvib_jax.types import Posterior

ARRAYS, DESCRIPTION = "prior.safetensors", "prior.json"
PRIOR = "prior"  # the folder for it in a run's
FORMAT = 1


@dataclass(frozen=True)
class LearnedPrior:
    """A prior over the mixtures of one model, given the number of vectors.

    Attributes:
      config: what it is and how it was fitted.
      labels: name of each label that texts may have -> its classes.
      most: largest number of vectors.
      point_map: between posteriors and points.
      params: of the density.
      digest: SHA-256 of the parameters of the model that it was fitted to.
    """

    config: PriorConfig
    labels: dict[str, tuple[str, ...]]
    most: int
    point_map: PointMap
    params: Params
    digest: str

    @functools.cached_property
    def graph(self) -> nnx.GraphDef:
        """The density's static structure."""
        return structure(self.config, self.width, self.most, self.labels)[0]

    @property
    def width(self) -> int:
        """R, coordinates of a point."""
        return self.point_map.basis.shape[1]

    def classes(self, name: str, values: Sequence[str]) -> np.ndarray:
        """The class of each value of a label, int32.

        Raises:
          ValueError: a label or a value that the prior was not fitted with.
        """
        if name not in self.labels:
            known = ", ".join(self.labels) or "none"
            raise ValueError(f"{name!r} is no label of this prior; it has {known}")
        classes = self.labels[name]
        for value in values:
            if value not in classes:
                raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(classes[:12])}")
        return np.array([classes.index(value) for value in values], np.int32)

    def draw(
        self,
        model: Any,
        key: jax.Array,
        counts: jax.Array,
        *,
        labels: Mapping[str, str] | None = None,
        sampling: Sampling | None = None,
    ) -> Posterior:
        """Draw posteriors such as texts have.

        Args:
          model: the `TextModel` that it was fitted to.
          key: PRNG key.
          counts: number of vectors of each, int (B,), at most `most`.
          labels: name -> the value that all shall have.
          sampling: how a flow draws.

        Returns:
          A `Posterior` with S = most + 1.

        Raises:
          ValueError: another model, or labels that the prior was not fitted with.
        """
        self.check_fits(model.params)
        run = model.compiled(draw_posterior, **self.static(sampling))
        counts = jnp.asarray(counts)
        return run(model.params, counts, key, *self.arrays(counts.shape[0], labels))

    def static(self, sampling: Sampling | None = None) -> dict[str, Any]:
        """The static arguments of `draw_posterior`."""
        return {"graph": self.graph, "most": self.most, "sampling": sampling or Sampling()}

    def arrays(self, rows: int, labels: Mapping[str, str] | None = None) -> tuple[Any, ...]:
        """The last arguments of `draw_posterior`, for so many rows that all have these labels."""
        given = {
            name: jnp.full((rows,), self.classes(name, [value])[0])
            for name, value in (labels or {}).items()
        }
        return self.params, self.point_map, given

    def save(self, folder: str | Path) -> list[Path]:
        """Write `prior.safetensors` and `prior.json`; replaces those that are there."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"density.{n}": a for n, a in self.params.items()}
        arrays |= {f"point_map.{n}": a for n, a in asdict(self.point_map).items()}
        with draft_of(folder / ARRAYS) as draft:
            save_file({n: np.asarray(a, order="C") for n, a in arrays.items()}, draft)
        said = {
            "format": FORMAT,
            "config": asdict(self.config),
            "labels": self.labels,
            "most": self.most,
            "model": self.digest,
        }
        write_whole(folder / DESCRIPTION, json.dumps(said, indent=1) + "\n")
        return [folder / ARRAYS, folder / DESCRIPTION]

    @classmethod
    def load(cls, folder: str | Path) -> "LearnedPrior":
        """The inverse of `save`.

        Raises:
          FileNotFoundError: there is none.
          ValueError: its files are damaged, or of another version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        for name in (ARRAYS, DESCRIPTION):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}; nvib fit-prior makes one")
        try:
            said = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            if said["format"] != FORMAT:
                raise ValueError(
                    f"{folder / DESCRIPTION} has format {said['format']}; wanted {FORMAT}"
                )
            parts: dict[str, dict[str, Any]] = {"density": {}, "point_map": {}}
            for name, array in load_file(folder / ARRAYS).items():
                part, _, rest = name.partition(".")
                parts[part][rest] = jnp.asarray(array)
            found = cls(
                config=PriorConfig(**said["config"]),
                labels={n: tuple(v) for n, v in said["labels"].items()},
                most=said["most"],
                point_map=PointMap(**parts["point_map"]),
                params=parts["density"],
                digest=said["model"],
            )
            shapes = structure(found.config, found.width, found.most, found.labels)[1]
        except (
            *(json.JSONDecodeError, SafetensorError),
            *(AttributeError, KeyError, TypeError, IndexError),
        ) as error:
            raise ValueError(f"the prior in {folder} is damaged: {error!r}") from error
        if {n: a.shape for n, a in found.params.items()} != {n: a.shape for n, a in shapes.items()}:
            raise ValueError(f"{folder / ARRAYS} and {DESCRIPTION} do not belong together")
        return found

    def check_fits(self, params: Params) -> None:
        """Raise ValueError unless these are the parameters of the model it was fitted to."""
        found = digest_of(params)
        if found != self.digest:
            raise ValueError(
                f"the prior was fitted to other parameters ({self.digest[:12]}...) than these "
                f"({found[:12]}...); fit it again with nvib fit-prior"
            )


def structure(
    config: PriorConfig, width: int, most: int, labels: Mapping[str, Sequence[str]]
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The density's static structure and the shapes of its parameters; no array is made."""
    graphs: list[nnx.GraphDef] = []

    def init() -> Params:
        graph, params = split(fresh(config, width, most, labels))
        graphs.append(graph)
        return params

    shapes = jax.eval_shape(init)
    return graphs[0], shapes


def fresh(config: PriorConfig, width: int, most: int, labels: Mapping[str, Sequence[str]]) -> Any:
    """A density that is not fitted yet."""
    sizes = {name: len(classes) for name, classes in labels.items()}
    return DENSITIES[config.kind](config, width, most, sizes, rngs=nnx.Rngs(config.seed))


def draw_posterior(
    model: Any,
    counts: jax.Array,
    key: jax.Array,
    params: Params,
    point_map: PointMap,
    labels: Mapping[str, jax.Array],
    *,
    graph: nnx.GraphDef,
    most: int,
    sampling: Sampling,
) -> Posterior:
    """Numbers of vectors (B,) -> posteriors; `model` is the module whose component comes first."""
    mask = jnp.arange(most, dtype=jnp.int32)[None] < counts[:, None]
    points = merge(graph, params).draw(mask, key, labels, sampling)
    return point_map.posterior(points, mask, model.latent.prior)


def write_learned(
    model: Any,
    counts: jax.Array,
    key: jax.Array,
    *arrays: Any,
    max_length: int,
    config: DecodingConfig | None,
    **static: Any,
) -> jax.Array:
    """Numbers of vectors (B,) -> draws of the learned prior -> ids (B, max_length)."""
    draw_key, read_key, tokens_key = jax.random.split(key, 3)
    posterior = draw_posterior(model, counts, draw_key, *arrays, **static)
    memories = model.memories(*model.read(posterior, key=read_key))
    return generate(model, memories, tokens_key, max_length=max_length, config=config)
