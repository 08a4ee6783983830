"""Flax NNX modules: they own parameters and call the pure functions, nothing more.

The tree-safe subset of NNX: `rngs` in `__init__` only, an explicit `key` at call (None means no
dropout), no shared references, no state written during a call.
"""

from nvib_jax.modules.attention import DenoisingAttention, SelfAttention
from nvib_jax.modules.nvib import NVIB
from nvib_jax.modules.self_attention import NVIBEncoderLayer, NVIBSelfAttention
from nvib_jax.modules.stacks import Decoder, Encoder
from nvib_jax.modules.transformer import DecoderLayer, EncoderLayer

__all__ = [
    "NVIB",
    "Decoder",
    "DecoderLayer",
    "DenoisingAttention",
    "Encoder",
    "EncoderLayer",
    "NVIBEncoderLayer",
    "NVIBSelfAttention",
    "SelfAttention",
]
