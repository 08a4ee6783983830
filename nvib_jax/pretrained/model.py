"""A pretrained Transformer as a person uses it: texts in, texts and figures out."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax.models.params import Params, digest_of
from nvib_jax.pretrained import passes, weights
from nvib_jax.pretrained import readings as read_how
from nvib_jax.pretrained.architecture import Architecture
from nvib_jax.pretrained.batches import batches as in_batches
from nvib_jax.pretrained.bottleneck import Bottleneck
from nvib_jax.pretrained.decoding import Decoding
from nvib_jax.pretrained.encoding import encoded, sources_of, with_room
from nvib_jax.pretrained.files import GENERATION, Files
from nvib_jax.pretrained.readings import Priors
from nvib_jax.pretrained.tokenizer import PretrainedTokenizer
from nvib_jax.progress import track
from nvib_jax.reading import EmpiricalPrior, Moments, Reading, Tau

Readings = dict[str, Reading | Bottleneck]


@dataclass(frozen=True)
class Scores:
    """What a model says of texts.

    Attributes:
      nats: negative log-probability of each text, summed over its tokens, float64 (B,).
      tokens: how many tokens those are, int (B,).
      right: how many of them are the likeliest, int (B,).
    """

    nats: np.ndarray
    tokens: np.ndarray
    right: np.ndarray

    def perplexity(self) -> float:
        """exp of the nats a token, of all texts together."""
        return float(np.exp(self.nats.sum() / self.tokens.sum()))

    def accuracy(self) -> float:
        """The share of tokens that are the likeliest."""
        return float(self.right.sum() / self.tokens.sum())


@dataclass(frozen=True, repr=False)
class PretrainedModel:
    """A pretrained Transformer, and how its attentions are read.

    Attributes:
      architecture: what it computes.
      graph: the module's static structure.
      params: flat dict of arrays.
      tokenizer: texts to ids and back.
      config: the content of its config.json.
      name: what it was loaded as.
      digest: SHA-256 of its config and weights, which readings are bound to.
      stored: whether these weights are those of the files that `name` names.
      generation: the content of its generation_config.json.
      decoding: how it writes unless told otherwise.
      readings: of the attentions that are not read as they are.
    """

    architecture: Architecture
    graph: nnx.GraphDef
    params: Params
    tokenizer: PretrainedTokenizer
    config: Mapping[str, Any]
    name: str
    digest: str
    decoding: Decoding
    stored: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    readings: Readings = field(default_factory=dict)
    _compiled: dict[Any, Callable[..., Any]] = field(default_factory=dict)

    def __repr__(self) -> str:
        count = sum(math.prod(p.shape) for p in self.params.values())
        read = f", {len(self.readings)} attentions re-read" if self.readings else ""
        return (
            f"PretrainedModel({self.name}, {self.architecture.family}, {count:,} parameters{read})"
        )

    @property
    def attentions(self) -> tuple[str, ...]:
        """Names of the attentions that can be read: "encoder.0.self", ..., "cross"."""
        return self.architecture.attentions

    # ---- figures

    def score(self, texts: Sequence[str], targets: Sequence[str] | None = None) -> Scores:
        """The log-probability of each text.

            causal    sum_t log p(x_t | x_<t), t > 1: the first token is given
            seq2seq   sum_t log p(y_t | y_<t, x), end-of-sentence included
            masked    sum_t log p(x_t | the others), each masked in turn (Salazar et al. 2020)
            classifier  log p(label | x), one token each

        Args:
          texts: to score, or to read where there are targets.
          targets: to score; for models of two stacks, or the labels for a classifier.

        Raises:
          ValueError: targets where there should be none, or the reverse; a text that is too long.
        """
        kind = self.architecture.kind
        if kind == "masked":
            return self._score_masked(texts, targets)
        if kind == "classifier" and targets is None:
            raise ValueError("a classifier needs targets, the label of each text")
        rows, others = self.rows(texts, targets)
        found = self._measure(passes.nats, rows, others)
        return Scores(found[0].astype(np.float64), found[1], found[2])

    def shares(
        self, texts: Sequence[str], targets: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """What the prior's component takes of each attention, mean over queries: name -> (H,).

        All cross-attentions are one, the mean over the layers. Attentions that are read as they are
        have no prior, and are 0.
        """
        rows, others = self.rows(texts, targets)
        found = self._measure(passes.shares, rows, others)
        about = self.architecture
        stacks = {"encoder": about.encoder, "decoder": about.decoder, "cross": about.decoder}
        heads = {name: size.heads for name, size in stacks.items() if size is not None}
        none = {name: np.zeros(heads[name.split(".")[0]]) for name in self.attentions}
        return none | {
            name: total.sum(0) / np.maximum(count.sum(0), 1)
            for name, (total, count) in found.items()
        }

    def empirical_prior(self, texts: Sequence[str], targets: Sequence[str] | None = None) -> Priors:
        """The prior of each attention: moments of what it reads in these texts.

        The attentions are read as they are. With two stacks the texts need their targets, because
        the decoder reads those.

        Raises:
          ValueError: fewer than two tokens, or vectors that are not finite.
        """
        rows, others = self.rows(texts, targets)
        run = self._jitted(passes.moments)
        found: dict[str, Moments] | None = None
        parts = list(self.batches(rows, others))
        for _, batch in track(parts, "moments", total=len(parts), unit="batches"):
            found = run(self.params, {}, batch, found)
        assert found is not None  # encoding refuses an empty list of texts
        if any(float(part.count) < 2 for part in found.values()):
            raise ValueError("the texts have fewer than 2 tokens; a prior needs their variance")
        priors = {name: EmpiricalPrior.from_moments(part) for name, part in found.items()}
        return Priors(jax.tree.map(jnp.asarray, priors), self.digest)

    # ---- readings

    def reinterpret(
        self,
        prior: Priors,
        *,
        alpha: float = math.inf,
        sigma: float = 0.0,
        mean: float = 1.0,
        form: str = "expected_logit",
        tau: Mapping[str, Tau] | None = None,
    ) -> "PretrainedModel":
        """The same weights, with every attention read as a mixture with a prior.

        Args:
          prior: from `empirical_prior` of this model.
          alpha, sigma, mean: the `Tau` of all attentions that `tau` does not name; infinity, 0 and
            1 are the pretrained model, to the last bit.
          form: of attention. All but "expected_logit" depend on how the weights are written.
          tau: by an attention's name, or by "encoder", "decoder", "cross" or "all".

        Raises:
          ValueError: a prior of other weights, a name that fits no attention, or a tau that is no
            number.
        """
        if prior.digest != self.digest:
            raise ValueError(
                f"the prior was measured with other weights ({prior.digest[:12]}...) than those of "
                f"{self.name} ({self.digest[:12]}...)"
            )
        taus = {"all": Tau(alpha, sigma, mean), **(tau or {})}
        found = read_how.readings(prior, taus, form, self.attentions)
        return self.with_readings(found)

    def with_readings(self, found: Mapping[str, Reading | Bottleneck]) -> "PretrainedModel":
        """The same weights and compiled functions, with these readings."""
        return dataclasses.replace(self, readings=read_how.traced(found))

    def with_params(self, params: Params) -> "PretrainedModel":
        """The same model and compiled functions with other weights, which are in no file yet."""
        digest = digest_of(params)
        return dataclasses.replace(self, params=params, digest=digest, stored=False)

    # ---- texts out

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """What a classifier says of each text, (B, C), in the order of `architecture.labels`.

        Raises:
          ValueError: a model that is no classifier, or a text that is too long.
        """
        if self.architecture.kind != "classifier":
            raise ValueError(
                f"{self.name} tells no labels apart; load it with labels, and fine-tune it"
            )
        return self._measure(passes.probabilities, self.rows(texts)[0])

    def generate(
        self, texts: Sequence[str], *, decoding: Decoding | None = None, seed: int = 0
    ) -> list[str]:
        """Write a text for each: its target, what follows it, or its likeliest label.

        Args:
          texts: to read; for a model of one stack, to continue.
          decoding: the rules; None is what generation_config.json says.
          seed: of sampling.

        Raises:
          ValueError: the model fills gaps and does not write; a text that is too long.
        """
        about, rules = self.architecture, decoding or self.decoding
        if about.kind == "masked":
            raise ValueError(f"a {about.family} model fills gaps; it writes no texts")
        if about.kind == "classifier":
            return [about.labels[i] for i in self.probabilities(texts).argmax(axis=1)]
        rows = sources_of(about, self.tokenizer, texts)
        rules, most = with_room(about, rows, rules)
        causal = about.kind == "causal"
        run = self._jitted(passes.written, rules=rules, about=about)
        written: list[str] = [""] * len(rows)
        parts = list(in_batches(rows, pad=about.pad, most=most, left=causal, whole=True))
        for part, batch in track(parts, "writing", total=len(parts), unit="batches"):
            key = jax.random.fold_in(jax.random.key(seed), int(part[0]))
            ids = np.asarray(run(self.params, self.readings, batch, key))
            for i, row in zip(part, ids, strict=False):
                written[i] = self.tokenizer.decode(row[row != about.pad].tolist())
        return written

    # ---- files

    def save(self, folder: str | Path) -> None:
        """Write what `load` needs to give this model again.

        That is its readings and which model they are of; weights that were trained here are
        written too, as `to_hugging_face` does.

        Raises:
          FileExistsError: there are weights to write, and the folder holds a model.
        """
        about = {"model": self.name, "digest": self.digest}
        if not self.stored:
            self.to_hugging_face(folder)
            if not self.readings:
                return
            about = {"model": read_how.HERE, "digest": Files(Path(folder), str(folder)).digest}
        read_how.save(folder, self.readings, about)

    def to_hugging_face(self, folder: str | Path) -> list[Path]:
        """Write weights, config and tokenizer as `transformers` opens them; readings are no part.

        Raises:
          FileExistsError: the folder holds a model.
        """
        others = dict(self.tokenizer.files)
        if self.generation:
            others[GENERATION] = (json.dumps(dict(self.generation), indent=2) + "\n").encode()
        return weights.write(folder, self.architecture, self.params, self.config, others=others)

    # ---- inside

    def rows(
        self, texts: Sequence[str], targets: Sequence[str] | None = None
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        """The ids of texts and of their targets; see `encoding.encoded`."""
        return encoded(self.architecture, self.tokenizer, texts, targets)

    def batches(self, rows: Any, others: Any = None) -> Any:
        """Batches of `rows`, each with the indices of its texts."""
        about = self.architecture
        return in_batches(rows, others, pad=about.pad, most=about.max_length)

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """`function(graph, params, *arrays, **options)` as a jitted function of the arrays.

        It is made once for each function and set of options, and shared by all readings.
        """
        name = (function, *sorted(options.items()))
        if name not in self._compiled:
            self._compiled[name] = jax.jit(partial(function, self.graph, **options))
        return self._compiled[name]

    def _jitted(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """`function(module, *arrays, **options)` of `(params, *arrays)`."""
        return self.compiled(passes.of_module, of=function, **options)

    def _measure(self, function: Callable[..., Any], rows: Any, others: Any = None) -> Any:
        """`function(module, readings, batch)` of all texts, in their order."""
        run, order, found = self._jitted(function), [], []
        for part, batch in self.batches(rows, others):
            out = jax.device_get(run(self.params, self.readings, batch))
            count = len(part)
            found.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], out))
            order.append(part)
        place = np.argsort(np.concatenate(order))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[place], *found)

    def _score_masked(self, texts: Sequence[str], targets: Sequence[str] | None) -> Scores:
        mask = self.tokenizer.mask
        if mask is None:
            raise ValueError(f"the tokenizer of {self.name} has no token that stands for a gap")
        rows, _ = self.rows(texts, targets)
        # The first and the last token are the family's own, and are not asked for.
        gaps = [(i, at) for i, row in enumerate(rows) for at in range(1, len(row) - 1)]
        if not gaps:
            raise ValueError("the texts have no tokens but the family's own")
        hidden = [[*rows[i][:at], mask, *rows[i][at + 1 :]] for i, at in gaps]
        # The answer goes with each row as a target of one token and its place.
        answers = [[at, rows[i][at]] for i, at in gaps]
        nats, right = self._measure(passes.gap_nats, hidden, answers)
        of = np.array([i for i, _ in gaps])
        count = partial(np.bincount, of, minlength=len(rows))
        return Scores(count(nats.astype(np.float64)), count(), count(right).astype(int))
