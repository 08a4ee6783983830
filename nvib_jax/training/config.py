"""The configuration is `nvib_jax.config`; presets written for 0.1.0 import it from here."""

from nvib_jax.config import Config, MeshConfig, ObjectiveConfig, TrainConfig

__all__ = ["Config", "MeshConfig", "ObjectiveConfig", "TrainConfig"]
