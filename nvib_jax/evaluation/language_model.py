"""A causal language model of the data, for scoring samples: texts in, log-probabilities out.

It predicts each token from the ones before it (causal_transformer.py). It uses the data's own
tokenizer, so perplexities per token may be compared only between models with the same tokenizer.

On the embedded grammar, whose probabilities are known, `LanguageModelConfig()` trained on 60,000
sentences gives 4,000 others a mean log-probability of -31.20 nats, the grammar itself -30.81: a gap
of .39 +- .01 (standard error), perplexity 19.48 a token beside the exact 18.77. By
`train_language_model(prepare(DataConfig()).sentences("train"), ...)` and `log_prob` of
`default_grammar().sentences(12345, 4000)`; 2 CPU cores shared with others' work, jax 0.10.2: 322 s,
175 s of CPU time for the whole script.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.evaluation.causal_transformer import (
    CausalTransformer,
    LanguageModelConfig,
    token_log_probs,
)
from nvib_jax.files import draft_of
from nvib_jax.models.params import Params, merge, split

FORMAT = 1  # part of the cache's key; raise it when the same config would train another model
ROWS = 64  # sentences that are scored at a time
BUCKETS = 4  # number of padded lengths, each compiled once

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LanguageModel:
    """A trained causal language model.

    Attributes:
      config: architecture and training.
      graph: the module's static structure.
      params: flat dict of arrays.
      tokenizer: text <-> ids.
      buckets: padded lengths, rising. For longer sentences the last one is doubled until they fit.
    """

    config: LanguageModelConfig
    graph: nnx.GraphDef
    params: Params
    tokenizer: Tokenizer
    buckets: tuple[int, ...]
    _compiled: dict[str, Callable[..., Any]] = field(default_factory=dict, repr=False)

    def log_prob(self, texts: Sequence[str]) -> np.ndarray:
        """`log p(text)`: the sum over its tokens and end-of-sentence.

        Args:
          texts: any; "" is a sentence of an end-of-sentence only, and no text is too long.

        Returns:
          float64 nats, shape (len(texts),).

        Raises:
          ValueError: no texts.
        """
        return np.array([scores.sum() for scores in self.token_log_probs(texts)])

    def token_log_probs(self, texts: Sequence[str], *, ends: bool = True) -> list[np.ndarray]:
        """`log p(token | tokens before)` of each token of each text.

        Args:
          texts: as in `log_prob`.
          ends: whether end-of-sentence is the last token of each.

        Returns:
          One float64 array of nats for each text.

        Raises:
          ValueError: no texts.
        """
        rows = tokenize(texts, self.tokenizer)
        widths = np.array([self._width(len(row)) for row in rows])
        log_p: list[Any] = [None] * len(rows)
        for width in np.unique(widths):
            members = np.flatnonzero(widths == width)
            for start in range(0, len(members), ROWS):
                part = members[start : start + ROWS]
                tokens, lengths = padded([rows[i] for i in part], int(width), ROWS)
                scores = np.asarray(self._score(tokens, lengths), np.float64)
                for i, row in zip(part, scores, strict=False):
                    log_p[i] = row[: len(rows[i]) + ends]
        return log_p

    def token_counts(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text, end-of-sentence included: int64, shape (len(texts),).

        Raises:
          ValueError: no texts.
        """
        return np.array([len(row) + 1 for row in tokenize(texts, self.tokenizer)], np.int64)

    def perplexity(self, texts: Sequence[str]) -> float:
        """`exp(-sum of log p / sum of tokens)`, where each end-of-sentence counts as a token.

        Raises:
          ValueError: no texts.
        """
        return float(np.exp(-self.log_prob(texts).sum() / self.token_counts(texts).sum()))

    def save(self, path: str | Path) -> None:
        """Write one .npz file: the parameters, and JSON with config, buckets and tokenizer hash."""
        about = {
            "format": FORMAT,
            "config": dataclasses.asdict(self.config),
            "buckets": self.buckets,
            "tokenizer": digest(self.tokenizer.to_bytes()),
        }
        arrays = {name: np.asarray(array) for name, array in self.params.items()}
        with draft_of(path) as draft, draft.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path, tokenizer: Tokenizer) -> "LanguageModel":
        """Read what `save` wrote.

        Args:
          path: the file.
          tokenizer: the one that the model was trained with.

        Raises:
          FileNotFoundError: no such file.
          ValueError: the file has another tokenizer or format, or is not a language model.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as saved:
                arrays = {name: jnp.asarray(saved[name]) for name in saved.files if name != "about"}
                about = json.loads(str(saved["about"]))
        except (ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no saved language model: {error}") from error
        if about["format"] != FORMAT:
            raise ValueError(f"{path} has format {about['format']}; this version reads {FORMAT}")
        if about["tokenizer"] != digest(tokenizer.to_bytes()):
            raise ValueError(f"{path} was trained with another tokenizer than the one given")
        config = LanguageModelConfig(**about["config"])
        graph, _ = split(build(config, tokenizer))
        return cls(config, graph, arrays, tokenizer, tuple(about["buckets"]))

    def _score(self, tokens: np.ndarray, lengths: np.ndarray) -> jax.Array:
        if "score" not in self._compiled:
            graph = self.graph
            self._compiled["score"] = jax.jit(
                lambda params, *arrays: token_log_probs(merge(graph, params), *arrays)
            )
        return self._compiled["score"](self.params, tokens, lengths)

    def _width(self, length: int) -> int:
        width = next((bucket for bucket in self.buckets if bucket >= length), self.buckets[-1])
        while width < length:
            width *= 2
        return width


def build(config: LanguageModelConfig, tokenizer: Tokenizer) -> CausalTransformer:
    """An untrained module; its parameters are a function of the config's seed."""
    return CausalTransformer(config, tokenizer.vocab_size, rngs=nnx.Rngs(config.seed))


def digest(content: bytes) -> str:
    """A hash of bytes, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def tokenize(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each text; ValueError for anything but a list of at least one text."""
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts is {texts!r}; wanted a list of at least one text")
    return tokenizer.encode_batch(list(texts))


def padded(rows: Sequence[list[int]], width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ragged ids -> int32 tokens (count, width) and lengths (count,), -1 for rows of padding."""
    tokens = np.full((count, width), Tokenizer.special.pad, np.int32)
    lengths = np.full(count, -1, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        lengths[i] = len(row)
    return tokens, lengths
