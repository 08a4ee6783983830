"""A module as its static structure and a flat dict of arrays, and back.

What training, checkpoints and generation hold: split once, merged inside `jax.jit`.
"""

from typing import Any

import jax
from flax import nnx

Params = dict[str, jax.Array]


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
