"""Detects damaged checkpoints: fingerprints of arrays, a seal on the meta data, no links.

A fingerprint is a sum of integers with wrap-around, so it is the same in any order of summation.
It therefore does not depend on the layout of an array, and can be checked on the arrays after they
were read, on any mesh. It always detects a change of one number, and misses a change of several
with probability 2^-64.
"""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Damaged(Exception):
    """A checkpoint differs from what was written."""


def fingerprints(tree: Any) -> dict[str, str]:
    """Path of each array in a tree -> 16 hexadecimal digits of its values, shape and dtype."""
    paths, arrays = [], []
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        paths.append(jax.tree_util.keystr(path))
        arrays.append(array)
    sums = np.asarray(_sums(arrays))
    return {
        path: f"{a:08x}{b:08x} {array.dtype}{list(array.shape)}"
        for path, array, (a, b) in zip(paths, arrays, sums.tolist(), strict=True)
    }


@jax.jit
def _sums(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([_sum(array) for array in arrays])


def _sum(array: jax.Array) -> jax.Array:
    """Two sums of the array's words, each word weighted by an odd number that depends on its place:
    uint32 (2,).
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    width = min(8 * array.dtype.itemsize, 32)  # a number of 64 bits becomes two words
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}"))
    words = bits.astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        here = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place * jnp.uint32(size) + here
    mixed = words * jnp.uint32(0x9E3779B1)
    mixed = mixed ^ (mixed >> jnp.uint32(15))
    one = jnp.uint32(1)
    first = jnp.sum(words * (place * jnp.uint32(2) + one), dtype=jnp.uint32)
    second = jnp.sum(mixed * ((place * jnp.uint32(0x85EBCA6B)) | one), dtype=jnp.uint32)
    return jnp.stack([first, second])


def check_fingerprints(found: dict[str, str], saved: dict[str, str]) -> None:
    """Check that arrays have the fingerprints that were saved.

    Raises:
      Damaged: naming the first that has not.
    """
    for path in sorted(found.keys() | saved.keys()):
        if found.get(path) != saved.get(path):
            raise Damaged(f"{path} is {found.get(path)}, saved as {saved.get(path)}")


def seal(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values with their hash added."""
    return {**values, "sha256": _hash(values)}


def check_seal(values: Any) -> None:
    """Check that sealed values match their hash.

    Raises:
      Damaged: they do not.
    """
    if not isinstance(values, dict) or "sha256" not in values:
        raise Damaged("its meta data have no seal")
    if _hash({k: v for k, v in values.items() if k != "sha256"}) != values["sha256"]:
        raise Damaged("its meta data have changed")


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_no_links(folder: str | Path) -> None:
    """Check that a folder holds only plain files and folders.

    A link could lead the reader elsewhere, and a pipe could make it wait forever.

    Raises:
      Damaged: naming the first link or special file.
    """
    if os.path.islink(folder):
        raise Damaged(f"{folder} is a link")
    for where, folders, files in os.walk(folder):
        for path in (os.path.join(where, name) for name in (*folders, *files)):
            kind = os.lstat(path).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise Damaged(f"{path} is a link or a special file; wanted plain ones")
