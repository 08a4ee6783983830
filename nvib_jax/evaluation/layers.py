"""What the NVIB layers of a stack keep, and what that depends on."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.data import default_grammar
from nvib_jax.evaluation.choice import correlation_at_fixed, explained
from nvib_jax.mixture import expected
from nvib_jax.models.summaries import kept
from nvib_jax.text_model import TextModel


def layer_table(model: TextModel, texts: Sequence[str]) -> list[dict[str, Any]]:
    """What each NVIB layer keeps, and what that depends on.

    Returns:
      A row for each NVIB layer: "layer" from 1; "kept", the share of the tokens with a pseudo-count
      above the config's threshold; "effective", the effective number of components by expected
      weights over their number, `exp(H) / (n + 1)`; "prior", the expected weight of the prior's
      component; "log_alpha", the mean log pseudo-count; the R2 (`nvib_jax.evaluation.choice`) of
      being kept and of the log pseudo-count by "position" and by "token", "space" (whether the
      token is one); and "information", for sentences of the grammar, the correlation at fixed
      length of the number of vectors kept with -log p.
    """
    if not model.config.model.nvib_layers:  # type: ignore[attr-defined]
        return []
    rows = model.tokenize(texts)
    lengths = np.array([len(row) for row in rows])
    chosen, log_alpha, effective, prior = model.measure(_layers, texts)
    valid = np.arange(chosen.shape[-1])[None] < lengths[:, None]
    place = np.broadcast_to(np.arange(chosen.shape[-1])[None], valid.shape)[valid]
    tokens = np.concatenate([np.asarray(row) for row in rows])
    groups = {"position": place, "token": tokens, "space": tokens == model.tokenizer.ids.space}
    table = []
    for layer in range(chosen.shape[1]):
        here, weight = chosen[:, layer][valid].astype(float), log_alpha[:, layer][valid]
        row: dict[str, Any] = {
            "layer": layer + 1,
            "kept": float(here.mean()),
            "effective": float((effective[:, layer] / (lengths + 1)).mean()),
            "prior": float(prior[:, layer].mean()),
            "log_alpha": float(weight.mean()),
        }
        for name, group in groups.items():
            row[f"kept_by_{name}"] = explained(group, here)
            row[f"log_alpha_by_{name}"] = explained(group, weight.astype(float))
        if model.config.data.source == "grammar":
            counts = (chosen[:, layer] & valid).sum(axis=1)
            information = -np.array([default_grammar().log_prob(text) for text in texts])
            row["information"] = correlation_at_fixed(lengths, counts, information)
        table.append(row)
    return table


def page_head(found: dict[str, Any], rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """The first lines of a page of text: scores, and what each NVIB layer keeps.

    Args:
      found: "scores" and "layers", the rows of `layer_table`.
      rows: (score, its description, format); scores that are not there are left out.
    """
    scores = found["scores"]
    lines = [
        f"{label:<48}{form.format(scores[name]):>10}"
        for name, label, form in rows
        if name in scores
    ]
    for row in found["layers"]:
        lines.append(
            f"{'NVIB layer ' + str(row['layer']) + ': vectors kept, effective, the prior':<48}"
            f"{row['kept']:>10.1%}{row['effective']:>10.1%}{row['prior']:>10.1%}"
        )
    return lines


def _layers(
    model: Any, tokens: jax.Array, mask: jax.Array, _: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """By NVIB layer: kept and log pseudo-count (B, L, max_length), effective and prior (B, L)."""
    posteriors = model.posteriors(tokens, mask)
    missing = model.max_length - tokens.shape[1]
    chosen, log_alpha, effective, prior = [], [], [], []
    for posterior in posteriors:
        weights = jnp.where(posterior.mask, jnp.exp(expected(posterior).log_weights), 0.0)
        entropy = -jnp.sum(weights * jnp.log(jnp.maximum(weights, 1e-30)), axis=-1)
        chosen.append(jnp.pad(kept(posterior, model.config.threshold), ((0, 0), (0, missing))))
        log_alpha.append(jnp.pad(posterior.log_alpha[:, 1:], ((0, 0), (0, missing))))
        effective.append(jnp.exp(entropy))
        prior.append(weights[:, 0])
    return tuple(jnp.stack(x, axis=1) for x in (chosen, log_alpha, effective, prior))  # type: ignore
