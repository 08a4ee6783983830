"""The page that a model of the Hugging Face Hub opens with, from its config and its figures."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import nvib_jax
from nvib_jax.checkpoint.description import Description
from nvib_jax.figures import in_words
from nvib_jax.models.build import family_of
from nvib_jax.models.config import NVAEConfig

_HOME = "https://github.com/nvib-jax/nvib_jax"
_KINDS = {
    "NVAE": "An autoencoder for sentences. Its latent is a nonparametric variational information "
    "bottleneck: the vectors that the decoder attends to are a distribution over mixtures, and the "
    "model learns how many of them it needs.",
    "denoising": "A denoising Transformer with nonparametric variational information bottlenecks "
    "in its self-attention.",
    "causal_lm": "A causal language model, whose self-attention may have nonparametric variational "
    "information bottlenecks.",
}
_SOURCES = {
    "grammar": "the probabilistic grammar that nvib_jax contains",
    "text": "files of text that are not published with it",
}


def model_card(
    description: Description,
    name: str,
    *,
    parameters: int,
    can: Callable[[str], bool],
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The model card, in Markdown with the header that the Hub reads.

    Args:
      description: of the model; no folder of the machine it was trained on is told.
      name: USER/NAME.
      parameters: how many.
      can: says whether the model's module has a method, as `Engine.can`.
      evaluation: what `nvib_jax.evaluate` returned; None is a card without figures.

    Raises:
      ValueError: an evaluation without scores.
    """
    config = description.without_places().config
    family = family_of(config.model)
    kind = config.model.kind if isinstance(config.model, NVAEConfig) else family
    about = _KINDS.get(kind, f"An autoencoder for sentences with the latent {kind}, a rival of the "
                       "nonparametric variational information bottleneck (NVIB).")  # fmt: skip
    data, train = config.data, config.train
    source = _SOURCES.get(data.source, f"`{data.source}`")
    uses = ["import nvib_jax as nvib", "", f'model = nvib.load("{name}")']
    uses += [
        line
        for method, line in (
            ("remember", 'model.reconstruct(["the old dog sees a small cat"])'),
            ("prior_memories", "model.sample(5)"),
            ("embed", 'model.embed(["the old dog sees a small cat"])'),
        )
        if can(method)
    ]
    lines = [
        "---",
        "library_name: nvib_jax",
        "tags:",
        *(f"- {tag}" for tag in ("nvib", "jax", "text", family.replace("_", "-"))),
        "---",
        "",
        f"# {name.rpartition('/')[2]}",
        "",
        f"{about} Made with [nvib_jax]({_HOME}) {nvib_jax.__version__}.",
        "",
        "| | |",
        "|---|---|",
        f"| model | {kind}, {parameters:,} parameters, width {config.model.width} |",
        f"| vocabulary | {description.tokenizer.vocab_size:,} |",
        f"| sentences | up to {description.max_length} tokens |",
        f"| trained on | {source} |",
        f"| training | {train.steps:,} steps of {data.batch_size} sentences, seed {train.seed} |",
        "",
        "## Use",
        "",
        "```bash",
        'pip install "nvib-jax[hub]"',
        "```",
        "",
        "```python",
        *uses,
        "```",
        "",
        "The files are `model.safetensors` and `model.json`: neither can run code.",
    ]
    if evaluation is not None:
        lines += ["", "## Figures", "", *_figures(evaluation)]
    lines += [
        "",
        "## Limits",
        "",
        "It knows the language of its training text and no other, and what it writes may be false. "
        "Nobody has looked for what it should not write.",
        "",
        "<details><summary>All settings</summary>",
        "",
        "```json",
        json.dumps(json.loads(description.without_places().to_json()["config"]), indent=1),
        "```",
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


def _figures(evaluation: Mapping[str, Any]) -> list[str]:
    """A table of the main figures, and what they were measured on."""
    rows = in_words(evaluation.get("scores", {}))
    if not rows:
        raise ValueError(
            f"evaluation has {', '.join(evaluation) or 'nothing'}, and no scores that a card "
            "shows; wanted what nvib_jax.evaluate returns"
        )
    said = [
        f"Measured by `nvib evaluate` on {evaluation['sentences']:,} sentences of the "
        f"{evaluation['split']} split, seed {evaluation['seed']}. One seed is an anecdote.",
        "",
        "| | |",
        "|---|--:|",
    ]
    return said + [f"| {label} | {cell} |" for label, (cell,) in rows]
