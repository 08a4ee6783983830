"""What importing costs, and the names the design promises."""

import inspect
import subprocess
import sys

import pytest

import nvib_jax as nvib

PURE = (
    "types",
    "posterior",
    "random",
    "mixture",
    "kl",
    "attention",
    "objective",
    "special",
    "dirichlet",
    "shapes",
    "mesh",
    "gamma",
    "cross_entropy",
    "attention.pallas_tpu",
    "attention.tpu_kernels",
    "attention.pallas_gpu",
    "attention.cudnn",
    "attention.home",
)
HEAVY = {
    "absl",
    "flax",
    "optax",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "sentencepiece",
    "grain",
}


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_pure_files_import_jax_and_numpy_only():
    """Everything new in sys.modules after the pure core is nvib_jax's own."""
    names = ", ".join(f"nvib_jax.{name}" for name in PURE)
    out = run(
        "import sys, jax, jax.numpy, numpy, dataclasses\n"
        "from jax.experimental.pallas import mosaic_gpu, tpu\nbefore = set(sys.modules)\n"
        f"import {names}\n"
        "print({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    # jax imports parts of itself lazily.
    assert eval(out) <= {"nvib_jax", "jax", "numpy", "jaxlib"}


def test_top_level_import_is_light():
    """No neural-network or data stack, and little time after jax itself."""
    out = run(
        "import warnings; warnings.simplefilter('error')\n"
        "import jax.numpy, sys, time\nstart = time.process_time()\nimport nvib_jax\n"
        "print(time.process_time() - start, *{m.split('.')[0] for m in sys.modules})"
    ).split()
    assert float(out[0]) < 5.0  # of the processor, a tenth of it where nothing else runs
    assert not HEAVY & set(out[1:])


# name -> (positional, {keyword-only: default}): what is promised to users.
REQUIRED = inspect.Parameter.empty
SIGNATURES = {
    "Prior": ("mean log_variance log_alpha alpha_delta", {"trainable": False}),
    "Prior.standard": ("dim", {"alpha": 1.0, "alpha_delta": 0.0, "trainable": False}),
    "Posterior": ("mean log_variance log_alpha mask", {}),
    "Mixture": ("mean log_variance log_weights mask", {"weights_kind": None}),
    "make_posterior": ("mean log_variance log_alpha mask prior", {}),
    "sample": ("key posterior", {"num_samples": 1}),
    "expected": ("posterior", {"log_weights": "mean", "threshold": None}),
    "read": ("posterior form", {"threshold": None, "key": None, "num_samples": 1}),
    "sample_prior": ("key prior lengths", {"max_length": REQUIRED}),
    "interpolate": ("a b t", {}),
    "kl_gaussian": ("posterior prior", {"num_samples": 1, "form": "expected_count"}),
    "kl_dirichlet": ("posterior prior", {"num_samples": 1, "form": "expected_count"}),
    "denoising_attention": (
        "query mixture",
        {
            "key_kernel": REQUIRED, "value_kernel": REQUIRED, "value_bias": None, "mask": None,
            "causal": False, "form": "exact", "implementation": None,
        },
    ),
    "random.loggamma": ("key log_alpha", {}),
    "random.log_dirichlet": ("key log_alpha mask", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_names_and_signatures(name):
    target = nvib
    for part in name.split("."):
        target = getattr(target, part)
    positional, keywords = SIGNATURES[name]
    parameters = inspect.signature(target).parameters.values()
    kinds = inspect.Parameter
    assert [p.name for p in parameters if p.kind != kinds.KEYWORD_ONLY] == positional.split()
    assert {p.name: p.default for p in parameters if p.kind == kinds.KEYWORD_ONLY} == keywords
    assert target.__doc__


def test_all_is_complete():
    assert set(nvib.__all__) >= {name.split(".")[0] for name in SIGNATURES}
    assert all(hasattr(nvib, name) for name in nvib.__all__)
