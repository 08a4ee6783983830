"""What a pretrained Transformer computes: one description for all families."""

from dataclasses import dataclass
from typing import Literal

Positions = Literal["learned", "sinusoid", "relative"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A stack of layers.

    Attributes:
      layers: how many.
      heads: H of each attention.
      hidden: width of the feed-forward layers.
    """

    layers: int
    heads: int
    hidden: int


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A Transformer of one of the families; ids are those of the vocabulary.

    Attributes:
      family: "bert", "roberta", "gpt2", "bart", "marian" or "t5".
      vocab_size, dim, head_dim: V, D and E; H E may differ from D.
      encoder, decoder: the stacks; None where the family has none.
      norm_first: whether a sublayer's norm is before it, and one more at the end of the stack.
      rms: whether norms only scale (no mean is taken off, no bias).
      eps: of the norms.
      activation: of the feed-forward layers, one of `transformer.ACTIVATIONS`.
      gated: whether it multiplies a second linear map.
      biases: whether linear maps have biases.
      positions: "relative" is T5's bias of the logits by distance.
      max_length: positions there are, or None if there is no limit.
      position_offset: row of the position table that the first token takes.
      counted_positions: whether padding takes no position.
      token_types: rows of the token type table, whose first is added to every token; 0: none.
      embedding_scale: what embeddings are multiplied by.
      embedding_norm: whether the embeddings' sum has a norm.
      logit_scale: c of `c q.k`, 1/sqrt(E) in all families but T5.
      head: "tied" reads the embedding, "transform" has a layer before it, "untied" a matrix of its
        own; "labels" is a classifier's, and "none" stands for a file that has no head.
      output_scale: what the last states are multiplied by before a tied head.
      output_bias: whether the logits have a bias.
      buckets, max_distance: of relative positions.
      pad, eos: ids of padding and end.
      start: id that a decoder starts from; None for models of one stack.
      dropout: rate of training.
      labels: names of what a classifier tells apart; () for all other models.
    """

    family: str
    vocab_size: int
    dim: int
    head_dim: int
    encoder: Size | None
    decoder: Size | None
    norm_first: bool
    rms: bool = False
    eps: float
    activation: str
    gated: bool = False
    biases: bool = True
    positions: Positions
    max_length: int | None
    position_offset: int = 0
    counted_positions: bool = False
    token_types: int = 0
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    logit_scale: float
    head: Literal["tied", "transform", "untied", "labels", "none"]
    output_scale: float = 1.0
    output_bias: bool = False
    buckets: int = 0
    max_distance: int = 0
    pad: int
    eos: int | None
    start: int | None = None
    dropout: float = 0.0
    labels: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["masked", "causal", "seq2seq", "classifier"]:
        """What the model does: it fills gaps, continues a text, writes one from another, or says
        which label a text has."""
        if self.labels:
            return "classifier"
        if self.decoder is None:
            return "masked"
        return "causal" if self.encoder is None else "seq2seq"

    @property
    def has_targets(self) -> bool:
        """Whether each text has a target: another text, or a label."""
        return self.kind in ("seq2seq", "classifier")

    @property
    def attentions(self) -> tuple[str, ...]:
        """Names of the attentions that can be read: "encoder.0.self", ..., "cross".

        All cross-attentions have one name, because all read the same vectors.
        """
        stacks = {"encoder": self.encoder, "decoder": self.decoder}
        own = [
            f"{name}.{layer}.self"
            for name, size in stacks.items()
            if size is not None
            for layer in range(size.layers)
        ]
        return (*own, *(["cross"] if self.encoder is not None and self.decoder is not None else []))
