"""Split a module into its static structure and a flat dict of arrays, and merge them again.

Training, checkpoints and generation hold the two parts and merge them inside `jax.jit`.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from nvib_jax.mesh import spec

Params = dict[str, jax.Array]
# Parameter -> the names of its axes (`nvib_jax.mesh.RULES`). The key is the parameter's own name,
# or "module.name" where the own name is a general one such as "kernel". Vectors and scalars that
# are not listed are small, and every device has a whole copy.
AXES: dict[str, tuple[str | None, ...]] = {
    "encoder_embedding": ("vocab", "embed"),
    "decoder_embedding": ("vocab", "embed"),
    "embedding": ("vocab", "embed"),
    "part": (None, "embed"),
    "position": (None, "embed"),
    "encoder_position": (None, "embed"),
    "decoder_position": (None, "embed"),
    "qkv.kernel": ("embed", None, "heads"),
    "qkv.bias": (None, "heads"),
    "query.kernel": ("embed", "heads"),
    "query.bias": ("heads",),
    "key_kernel": ("embed", "heads", None),
    "value_kernel": ("embed", "heads", None),
    "value_bias": ("heads", None),
    "out.kernel": ("heads", "embed"),
    "up.kernel": ("embed", "mlp"),
    "up.bias": ("mlp",),
    "down.kernel": ("mlp", "embed"),
    "mean.kernel": ("embed", None),
    "log_variance.kernel": ("embed", None),
    "key_value.kernel": ("embed", None),
    "queries": (None, "embed"),
    "codebook": (None, "embed"),
    "left.kernel": ("embed", None),
    "judge.kernel": ("mlp", None),
    "output.kernel": ("embed", "vocab"),
    "output.bias": ("vocab",),
}


def axes_of(name: str, ndim: int) -> tuple[str | None, ...]:
    """The names of a parameter's axes.

    Raises:
      ValueError: a parameter with several axes that is not in `AXES`.
    """
    *_, module, own = ["", *name.split(".")]
    for known in (own, f"{module}.{own}"):  # AXES never has both
        if known in AXES:
            return AXES[known]
    if ndim > 1:
        raise ValueError(f"parameter {name} has {ndim} axes; wanted their names in AXES")
    return (None,) * ndim


def layout(mesh: Any, params: Mapping[str, Any]) -> dict[str, P]:
    """The layout of each parameter on a mesh; `params` maps names to anything with a shape."""
    return {n: spec(mesh, axes_of(n, len(p.shape)), p.shape) for n, p in params.items()}


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """A module as (static structure, flat dict "encoder.layers.0.up.kernel" -> array)."""
    graph, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    return graph, {".".join(map(str, path)): leaf[...] for path, leaf in flat}


def merge(graph: nnx.GraphDef, params: Params) -> Any:
    """The inverse of `split`, inside or outside `jax.jit`."""
    tree: dict[Any, Any] = {}
    for name, leaf in params.items():
        *parents, last = [int(part) if part.isdigit() else part for part in name.split(".")]
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return nnx.merge(graph, tree)


def digest_of(params: Params) -> str:
    """SHA-256 of the names and values of parameters, to which other files are bound."""
    digest = hashlib.sha256()
    for name, param in sorted(params.items()):
        digest.update(name.encode() + np.asarray(param).tobytes())
    return digest.hexdigest()
