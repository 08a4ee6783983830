"""Copies of an array on several devices are the same numbers, and are made so where they are not.

Each device computes its copy of a parameter's update for itself. A bit that falls differently on
one of them stays: the run goes on, and what is saved is neither the one nor the other. Before a
checkpoint all take the first copy, so that the run that goes on is the run that was saved.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from nvib_jax.checks import vary_alike
from nvib_jax.mesh import MESH_AXES, axes_in, summed


def make_agree(mesh: jax.sharding.Mesh, shardings: Any) -> Callable[[Any], tuple[Any, jax.Array]]:
    """A jitted function: a tree -> (the tree of first copies, how many numbers differed from them).

    Args:
      mesh: with the axes `MESH_AXES`.
      shardings: of the tree, which is donated.
    """
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)

    def agree(tree: Any) -> tuple[Any, jax.Array]:
        leaves, treedef = jax.tree.flatten(tree)
        pairs = [
            _first_copy(leaf, sharding.spec)
            for leaf, sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
        ]
        firsts, counts = zip(*pairs, strict=True)
        return jax.tree.unflatten(treedef, firsts), sum(counts, jnp.int32(0))

    run = jax.shard_map(agree, mesh=mesh, in_specs=(specs,), out_specs=(specs, P()))
    return jax.jit(run, donate_argnums=0)


def _first_copy(x: jax.Array, spec: P) -> tuple[jax.Array, jax.Array]:
    """(the copy of the first device that has this part, numbers that are not as there)."""
    split = [axis for entry in spec for axis in axes_in(entry)]
    copied = tuple(axis for axis in MESH_AXES if axis not in split)
    if not copied:
        return x, jnp.int32(0)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    rank = sum((jax.lax.axis_index(axis) for axis in copied), jnp.int32(0))
    first = jax.lax.psum(jnp.where(rank == 0, bits, jnp.zeros_like(bits)), copied)
    mine, _ = vary_alike((bits, rank))  # said to be alike on all devices, which is the question
    unequal = summed(jnp.sum(mine != first, dtype=jnp.int32))
    return jax.lax.bitcast_convert_type(first, x.dtype), unequal
