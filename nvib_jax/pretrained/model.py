"""A pretrained Transformer as a person uses it: texts in, texts and figures out."""

import dataclasses
import hashlib
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

from nvib_jax.engine import check_texts
from nvib_jax.models.params import Params, merge, split
from nvib_jax.pretrained import files as on_disk
from nvib_jax.pretrained import readings as read_how
from nvib_jax.pretrained.architecture import Architecture
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.batches import Batch
from nvib_jax.pretrained.batches import batches as in_batches
from nvib_jax.pretrained.bottleneck import Bottleneck
from nvib_jax.pretrained.decoding import Decoding, decoding_of, generate
from nvib_jax.pretrained.readings import Priors
from nvib_jax.pretrained.tokenizer import PretrainedTokenizer, load_tokenizer
from nvib_jax.pretrained.transformer import Transformer
from nvib_jax.progress import to_standard_error, track
from nvib_jax.reading import EmpiricalPrior, Moments, Reading, Tau
from nvib_jax.reading import merge as merge_moments
from nvib_jax.reading import moments as moments_of

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

        Args:
          texts: to score, or to read where there are targets.
          targets: to score; for models of two stacks, and for no other.

        Raises:
          ValueError: targets where there should be none, or the reverse; a text that is too long.
        """
        kind = self.architecture.kind
        if kind == "masked":
            return self._score_masked(texts, targets)
        rows, others = self.rows(texts, targets)
        found = self._measure(_nats, rows, others)
        return Scores(found[0].astype(np.float64), found[1], found[2])

    def shares(
        self, texts: Sequence[str], targets: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """What the prior's component takes of each attention, mean over queries: name -> (H,).

        All cross-attentions are one, the mean over the layers. Attentions that are read as they are
        have no prior, and are 0.
        """
        rows, others = self.rows(texts, targets)
        found = self._measure(_shares, rows, others)
        heads = {"encoder": self.architecture.encoder, "decoder": self.architecture.decoder}
        heads["cross"] = self.architecture.decoder
        none = {name: np.zeros(_there(heads[name.split(".")[0]]).heads) for name in self.attentions}
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
        run = self._jitted(_moments)
        found: dict[str, Moments] | None = None
        parts = list(self.batches(rows, others))
        for _, batch in track(parts, "moments", total=len(parts), unit="batches"):
            found = run(self.params, {}, batch, found)
        found = _there(found)
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

    # ---- texts out

    def generate(
        self, texts: Sequence[str], *, decoding: Decoding | None = None, seed: int = 0
    ) -> list[str]:
        """Write a text for each: its target, or what follows it.

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
        rows = self._ids(texts, self.tokenizer.encode_source, "texts")
        causal = about.kind == "causal"
        if causal and about.max_length is not None:
            longest = max(map(len, rows))
            room = about.max_length - longest
            if room < 1:
                raise ValueError(
                    f"a text has {longest} tokens, and {about.family} has positions for "
                    f"{about.max_length}; wanted room for a token more"
                )
        most = about.max_length
        if causal and most is not None:
            most = max(most - rules.max_new_tokens, max(map(len, rows)))
            rules = dataclasses.replace(
                rules, max_new_tokens=min(rules.max_new_tokens, _there(about.max_length) - most)
            )
        elif most is not None and rules.max_new_tokens > most:
            rules = dataclasses.replace(rules, max_new_tokens=most)
        run = self._jitted(_generate, rules=rules, about=about)
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
        """Write the readings, and which model they are of; its weights are not copied."""
        about = {"model": self.name, "digest": self.digest}
        read_how.save(folder, self.readings, about)

    def to_hugging_face(self, folder: str | Path) -> list[Path]:
        """Write weights, config and tokenizer as `transformers` opens them; readings are no part.

        Raises:
          FileExistsError: the folder holds a model.
        """
        return on_disk.write(
            folder, self.architecture, self.params, self.config, others=self.tokenizer.files
        )

    # ---- inside

    def rows(
        self, texts: Sequence[str], targets: Sequence[str] | None = None
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        """The ids of texts and of their targets, None where the model takes none.

        Raises:
          ValueError: targets where there should be none, or the reverse; a text of no tokens, or
            of more than there are positions.
        """
        kind = self.architecture.kind
        if (targets is None) == (kind == "seq2seq"):
            missing = "needs targets, one for each text" if targets is None else "takes no targets"
            raise ValueError(f"a {self.architecture.family} model {missing}")
        rows = self._ids(texts, self.tokenizer.encode_source, "texts")
        if targets is None:
            return rows, None
        others = self._ids(targets, self.tokenizer.encode_target, "targets")
        if len(others) != len(rows):
            raise ValueError(f"{len(rows)} texts have {len(others)} targets; wanted as many")
        return rows, others

    def _ids(
        self, texts: Sequence[str], encode: Callable[[str], list[int]], name: str
    ) -> list[list[int]]:
        check_texts(texts)
        rows, most = [encode(text) for text in texts], self.architecture.max_length
        for i, row in enumerate(rows):
            if not row:
                raise ValueError(f"{name}[{i}] has no tokens; wanted at least 1")
            if most is not None and len(row) > most:
                raise ValueError(
                    f"{name}[{i}], {texts[i][:40]!r}, has {len(row)} tokens; wanted at most "
                    f"{most}, for which there are positions"
                )
        return rows

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
        return self.compiled(_of_module, of=function, **options)

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
        nats, right = self._measure(_gap_nats, hidden, answers)
        of = np.array([i for i, _ in gaps])
        count = partial(np.bincount, of, minlength=len(rows))
        return Scores(count(nats.astype(np.float64)), count(), count(right).astype(int))


def load(
    model: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    local_only: bool = False,
    say: Callable[[str], None] = to_standard_error,
) -> PretrainedModel:
    """Open a model of the Hugging Face Hub, a folder in its format, or saved readings.

    Args:
      model: a folder, a name such as "facebook/bart-large-cnn", or a folder from `save`.
      revision: branch, tag or commit of the Hub.
      dtype: of the parameters.
      local_only: whether the Hub is left alone and only what was downloaded before is used.
      say: called with a line of text about what the files ask for and is not done here.

    Raises:
      FileNotFoundError: no such folder or model, or no weights in safetensors.
      ValueError: a family or field that is not implemented, tensors that do not fit, or readings of
        other weights.
    """
    folder = Path(model).expanduser()
    if (folder / read_how.DESCRIPTION).is_file():
        found, said = read_how.open_saved(folder)
        base = load(said["model"], revision=revision, dtype=dtype, local_only=local_only, say=say)
        if base.digest != said["digest"]:
            raise ValueError(
                f"{folder} holds readings of other weights than those of {said['model']}"
            )
        return base.with_readings(found)
    files = on_disk.find(model, revision=revision, local_only=local_only)
    if files.revision is not None:
        say(f"{files.model}: revision {files.revision}")
    about, graph, params = on_disk.read(files, dtype=dtype)
    decoding, strange = decoding_of(files.generation, files.config, about)
    if strange:
        say(f"{files.model}: generation_config.json sets {', '.join(strange)}: not done here")
    return PretrainedModel(
        architecture=about,
        graph=graph,
        params=params,
        tokenizer=load_tokenizer(files.folder, about),
        config=files.config,
        name=files.model,
        digest=files.digest,
        decoding=decoding,
    )


def fresh(config: Mapping[str, Any], tokenizer: str | Path, *, seed: int = 0) -> PretrainedModel:
    """A model with random parameters, to be trained from nothing (`nvib_jax.pretrained.train`).

    Args:
      config: the content of a config.json.
      tokenizer: a folder with a tokenizer's files.
      seed: of the parameters.
    """
    about = on_disk.architecture(config)
    graph, params = split(Transformer(about, rngs=nnx.Rngs(seed)))
    decoding, _ = decoding_of({}, config, about)
    return PretrainedModel(
        architecture=about,
        graph=graph,
        params=params,
        tokenizer=load_tokenizer(tokenizer, about),
        config=config,
        name=f"a new {about.family}",
        digest=digest_of(params),
        decoding=decoding,
    )


def digest_of(params: Params) -> str:
    """SHA-256 of parameters, for models that are no files."""
    digest = hashlib.sha256()
    for name, param in sorted(params.items()):
        digest.update(name.encode() + np.asarray(param).tobytes())
    return digest.hexdigest()


# ---- functions of a module, for jit


def _of_module(
    graph: nnx.GraphDef, params: Params, *arrays: Any, of: Callable[..., Any], **options: Any
) -> Any:
    return of(merge(graph, params), *arrays, **options)


def states_of(
    module: Transformer, batch: Batch, view: View
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(states, what each should predict, which of those count), each (R, T, ...)."""
    if batch.target is None:
        states = module.states(batch.tokens, batch.mask, view=view)
        return states[:, :-1], batch.tokens[:, 1:], batch.mask[:, 1:]
    target, counted = batch.target, _there(batch.target_mask)
    start = jnp.full((target.shape[0], 1), _there(module.architecture.start), target.dtype)
    given = jnp.concatenate([start, target[:, :-1]], axis=1)
    states = module.states(batch.tokens, batch.mask, given, counted, view)
    return states, target, counted


def _nats(
    module: Transformer, readings: Readings, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(nats, tokens, right ones) of each text, (R,)."""
    states, targets, counted = states_of(module, batch, View(readings))
    log_p = jax.nn.log_softmax(module.logits(states), axis=-1)
    picked = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    right = counted & (picked >= jnp.max(log_p, axis=-1))
    return (
        -jnp.sum(jnp.where(counted, picked, 0.0), axis=1),
        jnp.sum(counted, axis=1),
        jnp.sum(right, axis=1),
    )


def _gap_nats(module: Transformer, readings: Readings, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Nats of the answer in a gap, and whether it is the likeliest, (R,)."""
    states = module.encode(batch.tokens, batch.mask, View(readings))
    place, answer = (_there(batch.target)[:, i] for i in (0, 1))
    here = jnp.take_along_axis(states, place[:, None, None], axis=1)
    log_p = jax.nn.log_softmax(module.logits(here)[:, 0], axis=-1)
    picked = jnp.take_along_axis(log_p, answer[:, None], axis=-1)[:, 0]
    return -picked, picked >= jnp.max(log_p, axis=-1)


def _shares(
    module: Transformer, readings: Readings, batch: Batch
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Of each attention (the sum of the prior's share over queries (R, H), their number (R, 1))."""
    view = View(readings)
    _everything(module, batch, view)
    found = {}
    for name, shares in view.shares.items():
        ours = batch.mask if name.startswith("encoder") else batch.target_mask
        queries = (batch.mask if ours is None else ours)[..., None].astype(jnp.float32)
        mean = sum(shares) / len(shares)
        found[name] = (jnp.sum(mean * queries, axis=1), jnp.sum(queries, axis=1))
    return found


def _everything(module: Transformer, batch: Batch, view: View) -> None:
    """One pass in which every attention is read, also at the last token."""
    if batch.target is None:
        module.states(batch.tokens, batch.mask, view=view)
    else:
        states_of(module, batch, view)


def _moments(
    module: Transformer, readings: Readings, batch: Batch, before: dict[str, Moments] | None
) -> dict[str, Moments]:
    """Moments of what each attention reads, joined to those before."""
    view = View(readings)
    _everything(module, batch, view)
    head_dim = module.architecture.head_dim
    found = {n: moments_of(x, mask, head_dim=head_dim) for n, (x, mask) in view.read.items()}
    return found if before is None else {n: merge_moments(before[n], found[n]) for n in found}


def _generate(
    module: Transformer,
    readings: Readings,
    batch: Batch,
    key: jax.Array,
    *,
    rules: Decoding,
    about: Architecture,
) -> jax.Array:
    """Ids that are written, (R, max_new_tokens)."""
    memories: tuple[Any, ...] = ()
    prompt, mask, view = batch.tokens, batch.mask, View(readings)
    if about.kind == "seq2seq":
        states = module.encode(batch.tokens, batch.mask, view)
        memories = module.memories(states, batch.mask, view)
        prompt = jnp.full((batch.tokens.shape[0], 1), _there(about.start), jnp.int32)
        mask = jnp.ones(prompt.shape, bool)
    rows, length = prompt.shape
    caches = module.empty_caches(rows, length + rules.max_new_tokens)
    x, caches = module.decode(prompt, mask, memories, caches, 0, view.again())

    def step(caches: Any, tokens: jax.Array, place: jax.Array) -> tuple[jax.Array, Any]:
        real = jnp.ones(tokens.shape, bool)
        x, caches = module.decode(tokens, real, memories, caches, place, view.again())
        return module.logits(x)[:, 0], caches

    logits = module.logits(x[:, -1:])[:, 0]
    return generate(step, caches, logits, prompt, key, decoding=rules, about=about)


def _there(value: Any) -> Any:
    """A part that the caller knows to be there."""
    assert value is not None
    return value


def inspect(model: str | Path, *, revision: str | None = None) -> dict[str, Any]:
    """What a model is, from its config.json and the names of its files; no weights are read."""
    files = on_disk.find(model, revision=revision)
    about = on_disk.architecture(files.config)
    return {
        "model": files.model,
        "revision": files.revision,
        **dataclasses.asdict(about),
        "kind": about.kind,
        "attentions": list(about.attentions),
        "weights": [file.name for file in files.weights],
        "bytes": sum(file.stat().st_size for file in files.weights),
        "generation": files.generation,
    }
