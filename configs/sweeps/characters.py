"""NVIB self-attention beside plain self-attention, on the grammar spelled out.

    nvib sweep configs/sweeps/characters.py

Both have four encoder layers and are trained alike, by character deletion; in `nvib` the upper two
attend through bottlenecks. `configs/README.md` has what came out.
"""

from pathlib import Path
from typing import Any

from nvib_jax.config import Config
from nvib_jax.presets import load_preset
from nvib_jax.sweep import variants


def sweep() -> dict[str, Config]:
    preset = load_preset(Path(__file__).parent.parent / "characters.py")
    models: dict[str, dict[str, Any]] = {
        "nvib": {},
        "transformer": {"model": {"plain_layers": 4, "nvib_layers": 0}},
    }
    return variants(preset, models, range(3))
