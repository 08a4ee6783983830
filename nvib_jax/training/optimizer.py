"""The optimiser: clipping, Adam or one of its kin, warm-up and decay."""

import optax

from nvib_jax.config import TrainConfig
from nvib_jax.models.config import ModelConfig, NVAEConfig
from nvib_jax.models.params import Params
from nvib_jax.training.codebook import with_codebook


def make_optimizer(
    config: TrainConfig, model: ModelConfig | None = None
) -> optax.GradientTransformation:
    """Clipping, the optimiser, warm-up and decay; a codebook, if the model has one, beside them."""
    peak, decay = config.learning_rate, max(config.steps - config.warmup_steps, 1)
    after: optax.Schedule = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, decay, alpha=0.01),
        "linear": optax.linear_schedule(peak, 0.01 * peak, decay),
    }[config.schedule]
    warmup = optax.linear_schedule(0.0, peak, max(config.warmup_steps, 1))
    rate = optax.join_schedules([warmup, after], [config.warmup_steps])
    if config.optimizer == "adamw":
        # Only matrices decay; vectors (norms, biases, the prior) do not.
        def matrices(params: Params) -> dict[str, bool]:
            return {n: p.ndim > 1 and not n.endswith("bias") for n, p in params.items()}

        optimizer = optax.adamw(rate, b2=0.98, weight_decay=config.weight_decay, mask=matrices)
    else:
        optimizer = {"adam": optax.adam, "radam": optax.radam}[config.optimizer](rate)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optimizer)
    if isinstance(model, NVAEConfig) and model.kind == "VQ":
        return with_codebook(optimizer, model.code_decay)
    return optimizer
