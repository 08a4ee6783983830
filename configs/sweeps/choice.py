"""What the choice of vectors is worth: by information, beside a stride, at equal shares.

    nvib sweep configs/sweeps/choice.py

`quickstart` is the preset as it is, one model for every share, and `pace-all` the same trained
three times as long; their curves are those of "A budget at reading". `pace-SHARE` has a vector for
every so many nats of text (`model.gate`) and is trained for that share alone, `vts-SHARE` one for
every so many words. `configs/README.md` has what came out.
"""

from pathlib import Path
from typing import Any

from nvib_jax.config import Config
from nvib_jax.presets import load_preset
from nvib_jax.sweep import changed, variants

SHARES = (0.25, 0.35)
LONG = {
    "train": {"steps": 6400, "eval_every": 3200},
    "objective": {"anneal_start": 200, "anneal_steps": 1600},
}


def sweep() -> dict[str, Config]:
    quickstart = load_preset(Path(__file__).parent.parent / "quickstart.py")
    models: dict[str, dict[str, Any]] = {}
    for share in SHARES:
        models[f"pace-{share}"] = {"gate_share": share, "keep_from": None}
        models[f"vts-{share}"] = {
            "kind": "VTS",
            "stride_share": share,
            "gate": "none",
            "keep_from": None,
        }
    models["pace-all"] = {}
    runs = {name: {"model": model} for name, model in models.items()}
    return variants(quickstart, {"quickstart": {}}, range(3)) | variants(
        changed(quickstart, LONG), runs, range(3)
    )
