"""`nvib doctor`: prints versions, devices, and which attention runs here, by trying each."""

import importlib.metadata
import os
import platform
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import nvib_jax
from nvib_jax import compilation_cache
from nvib_jax.attention import FORMS, IMPLEMENTATIONS, denoising_attention
from nvib_jax.attention.choice import fastest
from nvib_jax.types import Mixture

# Packages that are listed; plugins of `jax[cuda13]` and `jax[tpu]` are not, as jax finds them.
PACKAGES = ("jax", "jaxlib", "flax", "numpy")
TRAINING = (
    *("optax", "orbax-checkpoint", "grain", "array_record", "tensorflow-datasets"),
    *("sentencepiece", "tyro", "rich", "matplotlib", "sacrebleu", "safetensors"),
)
_HOMES = {"pallas_tpu": "tpu", "pallas_gpu": "gpu", "cudnn": "gpu"}
_DTYPES = (jnp.float32, jnp.bfloat16)


def lines() -> Iterator[str]:
    """The report's lines, each computed when it is needed, so that the first appear at once."""
    python = platform.python_version()
    yield f"nvib_jax {nvib_jax.__version__} in {Path(nvib_jax.__file__).parent}"
    yield f"Python {python}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    for label, packages in (("packages", PACKAGES), ("for training", TRAINING)):
        found = ", ".join(f"{name} {version(name)}" for name in packages)
        yield textwrap.fill(
            f"{label:<13}{found}", 100, subsequent_indent=" " * 13, break_on_hyphens=False
        )
    if any(version(name) == "missing" for name in TRAINING):
        yield "             pip install 'nvib-jax[train]' has what is missing"
    yield ""
    try:
        devices = jax.devices()
    except Exception as reason:  # backends raise any kind of error when they fail to start
        platforms = os.environ.get("JAX_PLATFORMS")
        asked = f", with JAX_PLATFORMS={platforms}" if platforms else ""
        yield f"devices      none{asked}: {' '.join(str(reason).split()) or repr(reason)}"
        return
    kind = devices[0].device_kind
    yield f"devices      {len(devices)} x {kind} ({jax.default_backend()})"
    if memory := (devices[0].memory_stats() or {}).get("bytes_limit"):
        yield f"memory       {memory / 2**30:.1f} GiB each"
    cache = os.environ.get("NVIB_CACHE") or "~/.cache/nvib_jax"
    yield f"data cache   {cache}"
    yield f"compiled     {compilation_cache.where()}"
    yield ""
    yield "attention    what runs here, and its largest error beside `reference`"
    for name in IMPLEMENTATIONS:
        chosen = "; taken where none is named" * (fastest(kind, 1024, True) == name)
        yield f"  {name:<11}{_tried(name)}{chosen}"


def main() -> None:
    """Print the report."""
    for line in lines():
        print(line, flush=True)


def version(package: str) -> str:
    """The version of an installed package, or "missing"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _tried(name: str) -> str:
    """The forms that an implementation runs, in float32 or else bfloat16, or why it runs none."""
    here = jax.default_backend()
    if _HOMES.get(name, here) != here:
        return f"no: it is for {_HOMES[name].upper()}s, this is a {here.upper()}"
    good: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for form in FORMS:
        for dtype in _DTYPES:
            try:
                error = _error(name, form, dtype)
            except Exception as reason:  # backends raise any kind of error
                reasons.setdefault(form, " ".join(str(reason).split())[:160])
            else:
                good.setdefault(jnp.dtype(dtype).name, []).append(f"{form} {error:.0e}")
                break
    runs = "; ".join(f"{', '.join(forms)} ({dtype})" for dtype, forms in good.items())
    return runs or f"no: {next(iter(reasons.values()))}"


def _error(name: str, form: str, dtype) -> float:
    """Largest difference to the float32 reference on a small random problem."""
    keys = jax.random.split(jax.random.key(0), 6)
    batch, queries, components, dim, heads = 2, 64, 65, 64, 2

    def normal(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.normal(key, shape).astype(dtype)

    mixture = Mixture(
        normal(keys[0], batch, components, dim).astype(jnp.float32),
        normal(keys[1], batch, components, dim).astype(jnp.float32),
        normal(keys[2], batch, components).astype(jnp.float32),
        jnp.ones((batch, components), bool),
    )
    query = normal(keys[3], batch, queries, heads, dim // heads)
    kernels: dict[str, Any] = {
        "key_kernel": normal(keys[4], dim, heads, dim // heads) / 8,
        "value_kernel": normal(keys[5], dim, heads, dim // heads) / 8,
    }
    exact: dict[str, Any] = {key: kernel.astype(jnp.float32) for key, kernel in kernels.items()}
    out = denoising_attention(query, mixture, form=form, implementation=name, **kernels)
    want = denoising_attention(
        query.astype(jnp.float32), mixture, form=form, implementation="reference", **exact
    )
    return float(jnp.max(jnp.abs(out.astype(jnp.float32) - want)))
