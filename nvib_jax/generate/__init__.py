"""Writing: a mixture, and what makes one -> token ids."""

from nvib_jax.generate.beam import beam_search
from nvib_jax.generate.decoding import (
    DecodingConfig,
    Method,
    choose,
    filter_logits,
    generate,
    likeliest,
    rewrite,
    token_key,
    write,
    write_prior,
)

__all__ = [
    "DecodingConfig",
    "Method",
    "beam_search",
    "choose",
    "filter_logits",
    "generate",
    "likeliest",
    "rewrite",
    "token_key",
    "write",
    "write_prior",
]
