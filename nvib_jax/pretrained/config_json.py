"""A Hugging Face config.json as an `Architecture`, and the labels in it.

A field of config.json that changes the mathematics is either read here or refused by its name; what
is neither only says how the model was trained or where it came from.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nvib_jax.pretrained.architecture import Architecture, Size


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a Hugging Face config.json describes.

    Args:
      config: its content.

    Raises:
      ValueError: a family that is not here, a field that is missing, or one that changes the
        mathematics in a way that is not here.
    """
    family = config.get("model_type")
    if family not in _READERS:
        near = difflib.get_close_matches(str(family), _READERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"model_type is {family!r}; wanted one of {', '.join(_READERS)}{hint}")
    try:
        return _READERS[family](config)
    except KeyError as error:
        raise ValueError(f"config.json of a {family} model has no {error}") from error


# Families that have a classifier's head, and what `transformers` calls them.
CLASSIFIERS = {"bert": "Bert", "roberta": "Roberta", "bart": "Bart", "t5": "T5"}


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of a classifier, as its config.json has them; `transformers` has two by default.

    Raises:
      ValueError: a regression, or texts that may have several labels.
    """
    kind = config.get("problem_type")
    if kind not in ("single_label_classification", None):
        raise ValueError(
            f"config.json has problem_type = {kind!r}, which is not implemented; wanted "
            "'single_label_classification'"
        )
    named = config.get("id2label") or {}
    count = len(named) or config.get("num_labels", 2)
    if count < 2:
        raise ValueError("config.json has 1 label, a regression; wanted at least 2 labels")
    return tuple(str(named.get(str(i), f"LABEL_{i}")) for i in range(count))


def with_labels(config: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """The config.json of a classifier that tells these labels apart.

    Raises:
      ValueError: a family without such a head, fewer than two labels, or one that is there twice.
    """
    family = config.get("model_type")
    if family not in CLASSIFIERS:
        raise ValueError(
            f"a {family} model has no head for labels; wanted one of {', '.join(CLASSIFIERS)}"
        )
    if isinstance(labels, str) or len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"labels are {labels!r}; wanted at least 2, and each once")
    return {
        **{name: value for name, value in config.items() if name != "num_labels"},
        "architectures": [f"{CLASSIFIERS[family]}ForSequenceClassification"],
        "problem_type": "single_label_classification",
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def _refuse(config: Mapping[str, Any], **wanted: Any) -> None:
    """Raise ValueError unless each field has the one value that is implemented, or is not there."""
    for name, value in wanted.items():
        if config.get(name, value) not in (value, None):
            raise ValueError(
                f"config.json has {name} = {config[name]!r}, which is not implemented; wanted "
                f"{value!r}"
            )


def _heads(config: Mapping[str, Any], dim: str, heads: str) -> int:
    """E of a model whose heads share its width."""
    if config[dim] % config[heads]:
        raise ValueError(
            f"config.json has {heads} = {config[heads]}; wanted a divisor of {dim} = {config[dim]}"
        )
    return config[dim] // config[heads]


def _activation(name: str) -> str:
    known = {
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "relu": "relu",
        "silu": "swish",
        "swish": "swish",
    }
    if name not in known:
        raise ValueError(
            f"config.json has the activation {name!r}; wanted one of {', '.join(known)}"
        )
    return known[name]


def _end(config: Mapping[str, Any]) -> int | None:
    """The id of end-of-sentence; files may have a list of one."""
    found = config.get("eos_token_id")
    return found[0] if isinstance(found, list) else found


def _bert(config: Mapping[str, Any]) -> Architecture:
    """BERT and RoBERTa, which counts positions from its padding's id and without padding."""
    _refuse(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    counted = config["model_type"] == "roberta"
    pad = config.get("pad_token_id", 0)
    offset = pad + 1 if counted else 0
    head_dim = _heads(config, "hidden_size", "num_attention_heads")
    return Architecture(
        family=config["model_type"],
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        head_dim=head_dim,
        encoder=Size(
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            hidden=config["intermediate_size"],
        ),
        decoder=None,
        norm_first=False,
        eps=config.get("layer_norm_eps", 1e-12),
        activation=_activation(config.get("hidden_act", "gelu")),
        positions="learned",
        max_length=config["max_position_embeddings"] - offset,
        position_offset=offset,
        counted_positions=counted,
        token_types=config.get("type_vocab_size", 2),
        embedding_norm=True,
        logit_scale=head_dim**-0.5,
        head="transform",
        output_bias=True,
        pad=pad,
        eos=_end(config),
        dropout=config.get("hidden_dropout_prob", 0.1),
    )


def _gpt2(config: Mapping[str, Any]) -> Architecture:
    _refuse(
        config,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    dim, head_dim = config["n_embd"], _heads(config, "n_embd", "n_head")
    end = _end(config)
    pad = config.get("pad_token_id")
    return Architecture(
        family="gpt2",
        vocab_size=config["vocab_size"],
        dim=dim,
        head_dim=head_dim,
        encoder=None,
        decoder=Size(
            layers=config["n_layer"],
            heads=config["n_head"],
            hidden=config.get("n_inner") or 4 * dim,
        ),
        norm_first=True,
        eps=config.get("layer_norm_epsilon", 1e-5),
        activation=_activation(config.get("activation_function", "gelu_new")),
        positions="learned",
        max_length=config["n_positions"],
        counted_positions=True,
        logit_scale=head_dim**-0.5,
        head="tied",
        # GPT-2 has no padding: what stands there is masked, so that any id will do.
        pad=pad if pad is not None else end or 0,
        eos=end,
        dropout=config.get("resid_pdrop", 0.1),
    )


def _bart(config: Mapping[str, Any]) -> Architecture:
    """BART and Marian, which has sinusoids for positions and no norm of the embeddings."""
    marian = config["model_type"] == "marian"
    _refuse(config, normalize_before=False, add_final_layer_norm=False, is_decoder=False)
    if marian:
        _refuse(
            config,
            share_encoder_decoder_embeddings=True,
            normalize_embedding=False,
            static_position_embeddings=True,
        )
    else:
        _refuse(config, normalize_embedding=True, static_position_embeddings=False)
    dim = config["d_model"]
    head_dim = _heads(config, "d_model", "encoder_attention_heads")
    if config["decoder_attention_heads"] != config["encoder_attention_heads"]:
        raise ValueError(
            f"config.json has decoder_attention_heads = {config['decoder_attention_heads']}; "
            f"wanted as many as encoder_attention_heads, {config['encoder_attention_heads']}"
        )

    def size(name: str) -> Size:
        return Size(
            layers=config[f"{name}_layers"],
            heads=config[f"{name}_attention_heads"],
            hidden=config[f"{name}_ffn_dim"],
        )

    return Architecture(
        family=config["model_type"],
        vocab_size=config["vocab_size"],
        dim=dim,
        head_dim=head_dim,
        encoder=size("encoder"),
        decoder=size("decoder"),
        norm_first=False,
        eps=1e-5,
        activation=_activation(config.get("activation_function", "gelu")),
        positions="sinusoid" if marian else "learned",
        max_length=config["max_position_embeddings"],
        position_offset=0 if marian else 2,  # rows 0 and 1 of BART's table are never read
        embedding_scale=dim**0.5 if config.get("scale_embedding") else 1.0,
        embedding_norm=not marian,
        logit_scale=head_dim**-0.5,
        head="tied",
        output_bias=True,
        pad=config["pad_token_id"],
        eos=_end(config),
        start=config["decoder_start_token_id"],
        dropout=config.get("dropout", 0.1),
    )


def _t5(config: Mapping[str, Any]) -> Architecture:
    gate, _, activation = config.get("feed_forward_proj", "relu").rpartition("-")
    if gate not in ("", "gated"):
        raise ValueError(
            f"config.json has feed_forward_proj = {config['feed_forward_proj']!r}; wanted an "
            "activation, or gated- and one"
        )
    # transformers' "gated-gelu" has the approximation by tanh.
    activation = "gelu_new" if gate and activation == "gelu" else activation
    # The first T5 has a tied head and scales its input; files say so in one of two fields.
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    size = {"heads": config["num_heads"], "hidden": config["d_ff"]}
    layers = config["num_layers"]
    return Architecture(
        family="t5",
        vocab_size=config["vocab_size"],
        dim=config["d_model"],
        head_dim=config["d_kv"],
        encoder=Size(layers=layers, **size),
        decoder=Size(layers=config.get("num_decoder_layers") or layers, **size),
        norm_first=True,
        rms=True,
        eps=config.get("layer_norm_epsilon", 1e-6),
        activation=_activation(activation),
        gated=bool(gate),
        biases=False,
        positions="relative",
        max_length=None,
        logit_scale=1.0,
        head="tied",
        output_scale=config["d_model"] ** -0.5 if scaled is not False else 1.0,
        buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
        pad=config["pad_token_id"],
        eos=_end(config),
        start=config["decoder_start_token_id"],
        dropout=config.get("dropout_rate", 0.1),
    )


_READERS: dict[str, Callable[[Mapping[str, Any]], Architecture]] = {
    "bert": _bert,
    "roberta": _bert,
    "gpt2": _gpt2,
    "bart": _bart,
    "marian": _bart,
    "t5": _t5,
}
