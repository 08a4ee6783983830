"""Causal language models whose upper layers attend through bottlenecks, beside plain ones.

    nvib sweep configs/sweeps/causal_lm.py

All have three layers and are trained alike; in `nvib` the upper two read mixtures of the past. The
grammar's probabilities are known, and on WikiText-2 (`wikitext2-*`; its files lie where
`configs/wikitext2_cpu.py` says) a model of this size can overfit. `configs/README.md` has what
came out, of the latter for one seed.
"""

import dataclasses
from pathlib import Path
from typing import Any

from nvib_jax.config import Config
from nvib_jax.presets import load_preset
from nvib_jax.sweep import variants

MODELS: dict[str, dict[str, Any]] = {
    "nvib": {},
    "transformer": {"model": {"plain_layers": 3, "nvib_layers": 0}},
}


def sweep() -> dict[str, Config]:
    configs = Path(__file__).parent.parent
    grammar = load_preset(configs / "causal_lm.py")
    data = load_preset(configs / "wikitext2_cpu.py").data
    model = dataclasses.replace(grammar.model, dropout=0.1)
    wikitext2 = dataclasses.replace(grammar, data=data, model=model)
    named = {f"wikitext2-{name}": changes for name, changes in MODELS.items()}
    return variants(grammar, MODELS, range(3)) | variants(wikitext2, named, range(3))
