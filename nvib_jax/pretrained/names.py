"""Where each parameter is in a Hugging Face file: one table a family, read in both directions.

Torch keeps a linear map as (out, in), so its matrices are transposed here; GPT-2's are not.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from nvib_jax.pretrained.architecture import Architecture


@dataclass(frozen=True)
class Source:
    """A parameter's place in a file.

    Attributes:
      name: of the tensor.
      transposed: whether it is the parameter's transpose.
      part: the parameter is part i of n equal ones of the tensor's last axis, (i, n).
      row: whether the tensor has a leading axis of 1.
    """

    name: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)
    row: bool = False

    def take(self, tensor: np.ndarray) -> np.ndarray:
        """The parameter, from the tensor."""
        i, n = self.part
        width = tensor.shape[-1] // n
        own = tensor[..., i * width : (i + 1) * width] if n > 1 else tensor
        own = own[0] if self.row else own
        return own.T if self.transposed else own


Names = dict[str, Source]


def sources(architecture: Architecture) -> Names:
    """Parameter -> its place in a file of the family, as `save_pretrained` writes it."""
    names = _TABLES[architecture.family](architecture)
    if not architecture.labels:
        return names
    if architecture.family == "t5":  # its body has a prefix in a classifier's file, and in no other
        body = prefix(architecture)
        names = {own: replace(at, name=body + at.name) for own, at in names.items()}
    return names | label_head(architecture)


def label_head(architecture: Architecture) -> Names:
    """Where a classifier of the family has its head; {} if the family has no such head."""
    found = _LABEL_HEADS.get(architecture.family)
    return {} if found is None else _linear("pooler", found[0]) | _linear("classifier", found[1])


def prefix(architecture: Architecture) -> str:
    """What names of the body begin with in a file that has a head, and in no other file."""
    if architecture.family == "t5" and architecture.labels:
        return "transformer."
    return _PREFIXES[architecture.family]


def ignored(name: str) -> bool:
    """Whether a tensor of a file repeats another, or is no part of a language model."""
    return name.endswith(_REPEATED)


def tensors(names: Names, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The file's tensors, by name: the inverse of `Source.take`."""
    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for own, source in names.items():
        array = np.asarray(params[own])
        array = array.T if source.transposed else array
        array = array[None] if source.row else array
        parts.setdefault(source.name, []).append((source.part[0], array))
    for name, found in parts.items():
        arrays = [array for _, array in sorted(found, key=lambda part: part[0])]
        whole = np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]
        yield name, np.ascontiguousarray(whole)


_PREFIXES = {
    "bert": "bert.",
    "roberta": "roberta.",
    "gpt2": "transformer.",
    "bart": "model.",
    "marian": "model.",
    "t5": "",
}
_LABEL_HEADS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "bart": ("classification_head.dense", "classification_head.out_proj"),
    "t5": ("classification_head.dense", "classification_head.out_proj"),
}
_REPEATED = (
    # Tied to the embedding, unless the architecture says that it is not.
    "lm_head.weight",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "EncDecAttention.relative_attention_bias.weight",
    # Numbers that are no parameters.
    "embeddings.position_ids",
    ".attn.bias",
    ".attn.masked_bias",
    # Heads of other tasks.
    "pooler.dense.weight",
    "pooler.dense.bias",
    "cls.seq_relationship.weight",
    "cls.seq_relationship.bias",
)


def _linear(own: str, theirs: str, *, bias: bool = True) -> Names:
    names = {f"{own}.kernel": Source(f"{theirs}.weight", transposed=True)}
    return names | ({f"{own}.bias": Source(f"{theirs}.bias")} if bias else {})


def _norm(own: str, theirs: str, *, bias: bool = True) -> Names:
    names = {f"{own}.scale": Source(f"{theirs}.weight")}
    return names | ({f"{own}.bias": Source(f"{theirs}.bias")} if bias else {})


def _joined(tables: Iterable[Names]) -> Names:
    return {own: source for table in tables for own, source in table.items()}


def _bert(a: Architecture) -> Names:
    body = _PREFIXES[a.family]

    def layer(i: int) -> Names:
        own, theirs = f"encoder.layers.{i}", f"{body}encoder.layer.{i}"
        return _joined(
            [
                _linear(f"{own}.attention.query", f"{theirs}.attention.self.query"),
                _linear(f"{own}.attention.key", f"{theirs}.attention.self.key"),
                _linear(f"{own}.attention.value", f"{theirs}.attention.self.value"),
                _linear(f"{own}.attention.out", f"{theirs}.attention.output.dense"),
                _norm(f"{own}.norms.0", f"{theirs}.attention.output.LayerNorm"),
                _linear(f"{own}.up", f"{theirs}.intermediate.dense"),
                _linear(f"{own}.down", f"{theirs}.output.dense"),
                _norm(f"{own}.norms.1", f"{theirs}.output.LayerNorm"),
            ]
        )

    embeddings = f"{body}embeddings"
    names = {
        "embedding": Source(f"{embeddings}.word_embeddings.weight"),
        "encoder.position": Source(f"{embeddings}.position_embeddings.weight"),
        "token_type": Source(f"{embeddings}.token_type_embeddings.weight"),
        **_norm("encoder.embedding_norm", f"{embeddings}.LayerNorm"),
        **_joined(layer(i) for i in range(_layers(a.encoder))),
    }
    if a.head != "transform":
        return names
    bert = a.family == "bert"
    head = "cls.predictions.transform" if bert else "lm_head"
    return {
        **names,
        **_linear("transform", f"{head}.dense"),
        **_norm("transform_norm", f"{head}.{'LayerNorm' if bert else 'layer_norm'}"),
        "output_bias": Source("cls.predictions.bias" if bert else "lm_head.bias"),
    }


def _gpt2(a: Architecture) -> Names:
    body = _PREFIXES[a.family]

    def linear(own: str, theirs: str, part: tuple[int, int] = (0, 1)) -> Names:
        return {
            f"{own}.kernel": Source(f"{theirs}.weight", part=part),
            f"{own}.bias": Source(f"{theirs}.bias", part=part),
        }

    def layer(i: int) -> Names:
        own, theirs = f"decoder.layers.{i}", f"{body}h.{i}"
        return _joined(
            [
                linear(f"{own}.attention.query", f"{theirs}.attn.c_attn", (0, 3)),
                linear(f"{own}.attention.key", f"{theirs}.attn.c_attn", (1, 3)),
                linear(f"{own}.attention.value", f"{theirs}.attn.c_attn", (2, 3)),
                linear(f"{own}.attention.out", f"{theirs}.attn.c_proj"),
                linear(f"{own}.up", f"{theirs}.mlp.c_fc"),
                linear(f"{own}.down", f"{theirs}.mlp.c_proj"),
                _norm(f"{own}.norms.0", f"{theirs}.ln_1"),
                _norm(f"{own}.norms.1", f"{theirs}.ln_2"),
            ]
        )

    return {
        "embedding": Source(f"{body}wte.weight"),
        "decoder.position": Source(f"{body}wpe.weight"),
        **_norm("decoder.norm", f"{body}ln_f"),
        **_joined(layer(i) for i in range(_layers(a.decoder))),
        **_untied(a),
    }


def _bart(a: Architecture) -> Names:
    body = _PREFIXES[a.family]

    def attention(own: str, theirs: str) -> Names:
        return _joined(
            _linear(f"{own}.{ours}", f"{theirs}.{name}_proj")
            for ours, name in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))
        )

    def layer(stack: str, i: int) -> Names:
        own, theirs = f"{stack}.layers.{i}", f"{body}{stack}.layers.{i}"
        names = [
            attention(f"{own}.attention", f"{theirs}.self_attn"),
            _norm(f"{own}.norms.0", f"{theirs}.self_attn_layer_norm"),
            _linear(f"{own}.up", f"{theirs}.fc1"),
            _linear(f"{own}.down", f"{theirs}.fc2"),
        ]
        last = 1
        if stack == "decoder":
            names.append(attention(f"{own}.cross", f"{theirs}.encoder_attn"))
            names.append(_norm(f"{own}.norms.1", f"{theirs}.encoder_attn_layer_norm"))
            last = 2
        return _joined([*names, _norm(f"{own}.norms.{last}", f"{theirs}.final_layer_norm")])

    def stack(name: str, layers: int) -> Names:
        names = _joined(layer(name, i) for i in range(layers))
        if a.positions == "learned":
            names[f"{name}.position"] = Source(f"{body}{name}.embed_positions.weight")
        if a.embedding_norm:
            names |= _norm(f"{name}.embedding_norm", f"{body}{name}.layernorm_embedding")
        return names

    return {
        "embedding": Source(f"{body}shared.weight"),
        **stack("encoder", _layers(a.encoder)),
        **stack("decoder", _layers(a.decoder)),
        **({"output_bias": Source("final_logits_bias", row=True)} if a.output_bias else {}),
        **_untied(a),
    }


def _t5(a: Architecture) -> Names:
    def linear(own: str, theirs: str) -> Names:
        return _linear(own, theirs, bias=False)

    def attention(own: str, theirs: str) -> Names:
        return _joined(
            linear(f"{own}.{ours}", f"{theirs}.{name}")
            for ours, name in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
        )

    def layer(stack: str, i: int) -> Names:
        own, theirs = f"{stack}.layers.{i}", f"{stack}.block.{i}.layer"
        last = 2 if stack == "decoder" else 1
        dense = f"{theirs}.{last}.DenseReluDense"
        names = [
            attention(f"{own}.attention", f"{theirs}.0.SelfAttention"),
            *(
                _norm(f"{own}.norms.{n}", f"{theirs}.{n}.layer_norm", bias=False)
                for n in range(last + 1)
            ),
            linear(f"{own}.down", f"{dense}.wo"),
        ]
        if stack == "decoder":
            names.append(attention(f"{own}.cross", f"{theirs}.1.EncDecAttention"))
        if a.gated:  # wi_0 goes through the activation
            names += [linear(f"{own}.up", f"{dense}.wi_0"), linear(f"{own}.gate", f"{dense}.wi_1")]
        else:
            names.append(linear(f"{own}.up", f"{dense}.wi"))
        return _joined(names)

    def stack(name: str, layers: int) -> Names:
        first = f"{name}.block.0.layer.0.SelfAttention"
        return {
            **_joined(layer(name, i) for i in range(layers)),
            f"{name}.bias.relative": Source(f"{first}.relative_attention_bias.weight"),
            **_norm(f"{name}.norm", f"{name}.final_layer_norm", bias=False),
        }

    return {
        "embedding": Source("shared.weight"),
        **stack("encoder", _layers(a.encoder)),
        **stack("decoder", _layers(a.decoder)),
        **_untied(a),
    }


def _untied(a: Architecture) -> Names:
    return _linear("output", "lm_head", bias=False) if a.head == "untied" else {}


def _layers(size) -> int:
    return size.layers


_TABLES = {
    "bert": _bert,
    "roberta": _bert,
    "gpt2": _gpt2,
    "bart": _bart,
    "marian": _bart,
    "t5": _t5,
}
