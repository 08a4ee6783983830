"""Rivals of other kinds, and penalties of the aggregate posterior, beside the quickstart.

    nvib sweep configs/sweeps/rivals.py

One data set, one budget, one decoding. `vq-SHARE` writes through codes for that share of the words
(van den Oord et al., 2017), `vts-0.5` through Gaussians for the same; `daae` is the denoising
adversarial autoencoder of Shen et al. (2020), `aae` the same without noise, `vtp` the VAE of one
vector. `nvae-mmd`, `nvae-sliced` and `vtp-mmd` have a further penalty, of the distance between the
texts' mixtures, taken together, and the prior. Not run as a whole yet.
"""

from pathlib import Path
from typing import Any

from nvib_jax.config import Config
from nvib_jax.presets import load_preset
from nvib_jax.sweep import variants

PLAIN: dict[str, Any] = {"gate": "none", "keep_from": None}  # a rival's vectors are its own choice


def sweep() -> dict[str, Config]:
    quickstart = load_preset(Path(__file__).parent.parent / "quickstart.py")
    models: dict[str, dict[str, dict[str, Any]]] = {"quickstart": {}}
    for share in (0.5, 1.0):
        models[f"vq-{share}"] = {"model": {"kind": "VQ", "stride_share": share, **PLAIN}}
    models["vts-0.5"] = {"model": {"kind": "VTS", **PLAIN}}
    models["vtp"] = {"model": {"kind": "VTP", **PLAIN}}
    models["aae"] = {"model": {"kind": "AAE", **PLAIN}}
    models["daae"] = models["aae"] | {"objective": {"encoder_noise": 0.3}}
    models["vtp-mmd"] = models["vtp"] | {"objective": {"lambda_mmd": 100.0}}
    models["nvae-mmd"] = {"objective": {"lambda_mmd": 100.0}}
    models["nvae-sliced"] = {"objective": {"lambda_sliced": 10.0}}
    return variants(quickstart, models, range(3))
