"""What importing costs, and the names the design promises."""

import ast
import functools
import graphlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import nvib_jax as nvib

PURE = (
    "types",
    "posterior",
    "random",
    "mixture",
    "kernels",
    "editing",
    "whitening",
    "reading",
    "kl",
    "attention",
    "objective",
    "numerics.special",
    "numerics.dirichlet",
    "checks",
    "mesh",
    "numerics.gamma",
    "objective.cross_entropy",
    "attention.pallas_tpu",
    "attention.tpu_kernels",
    "attention.pallas_gpu",
    "attention.cache",
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
    "keep_largest": ("posterior keep", {}),
    "sample": ("key posterior", {"num_samples": 1, "normalize": True}),
    "expected": ("posterior", {"log_weights": "mean", "threshold": None, "normalize": True}),
    "read": (
        "posterior form", {"threshold": None, "key": None, "num_samples": 1, "normalize": True}
    ),
    "sample_prior": ("key prior lengths", {"max_length": REQUIRED}),
    "interpolate": ("a b t", {}),
    "kl_gaussian": ("posterior prior", {"num_samples": 1, "form": "expected_count"}),
    "kl_dirichlet": ("posterior prior", {"num_samples": 1, "form": "expected_count"}),
    "denoising_attention": (
        "query mixture",
        {
            "key_kernel": REQUIRED, "value_kernel": REQUIRED, "value_bias": None, "mask": None,
            "position_bias": None, "causal": False, "form": "exact", "with_lse": False,
            "implementation": None,
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


# ---- names that are imported when they are first asked for

LATER = {
    **{name: "nvib_jax.config" for name in ("Config", "MeshConfig", "ObjectiveConfig")},
    "TrainConfig": "nvib_jax.config",
    "DataConfig": "nvib_jax.data.config",
    "DecodingConfig": "nvib_jax.generate.decoding",
    "EvaluationConfig": "nvib_jax.evaluation.protocol",
    "NVAEConfig": "nvib_jax.models.config",
    "Run": "nvib_jax.runs",
    "TextModel": "nvib_jax.text_model",
    "evaluate": "nvib_jax.evaluation.protocol",
    "load": "nvib_jax.text.saved",
    "train": "nvib_jax.runs",
}


def test_names_of_trained_models_are_there():
    assert set(nvib._LATER) == set(LATER)
    assert set(dir(nvib)) >= {*LATER, *nvib.__all__}
    assert {name: getattr(nvib, name).__module__ for name in LATER} == LATER
    assert nvib.load == nvib.TextModel.load
    with pytest.raises(AttributeError, match="module 'nvib_jax' has no attribute 'trian'"):
        _ = nvib.trian


def test_they_are_not_imported_before():
    """Nor with `*`, which would need all of the extra."""
    out = run(
        "from nvib_jax import *\nimport sys, nvib_jax\n"
        "assert not {'flax', 'orbax', 'nvib_jax.config'} & set(sys.modules)\n"
        "from nvib_jax import Config\n"
        "print('nvib_jax.config' in sys.modules, Config is nvib_jax.Config, 'train' in globals())"
    )
    assert out.split() == ["True", "True", "False"]


def test_without_the_extra_they_say_what_has_it(monkeypatch):
    for name in LATER:
        monkeypatch.delitem(vars(nvib), name, raising=False)
        monkeypatch.setitem(sys.modules, LATER[name], None)
        monkeypatch.setitem(sys.modules, f"nvib_jax.{nvib._LATER[name][0]}", None)
        with pytest.raises(ImportError, match=rf"^nvib_jax.{name} cannot be used: .*jax\[train\]"):
            getattr(nvib, name)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(nvib.__file__).read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    found = {a.asname for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    found |= {
        target.id
        for n in block.body
        if isinstance(n, ast.Assign)
        for each in n.targets
        for target in ast.walk(each)
        if isinstance(target, ast.Name)
    }
    assert found - {None} == set(LATER)


# ---- imports go down

# Files and folders of the library in the order in which they may import each other: each only what
# stands before it. The top folder itself, `nvib_jax`, is `__init__`: its public names.
FLOORS = (
    *("checks", "types", "mesh", "numerics", "random", "posterior", "kl", "attention"),
    *("mixture", "kernels", "editing", "reading", "objective", "__init__", "modules"),
    *("whitening", "fields", "figures", "files", "hub", "heartbeat", "progress", "processes"),
    *("compilation_cache", "plots"),
    *("models", "data", "config", "presets", "effects", "generate", "checkpoint"),
    *("text", "priors", "text_model", "pretrained"),
    *("training", "evaluation", "runs", "sweep", "bench", "cli", "__main__"),
)


@functools.cache
def imports():
    """Module -> the modules of the library that it imports, also inside functions."""
    root = Path(nvib.__file__).parent
    files = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[1:] and parts[-1] == "__init__" else parts)] = path
    return {name: found_in(path, files) - {name} for name, path in files.items()}


def found_in(path, modules):
    """What a file imports at run time, as names in `modules`."""
    found = set()
    todo = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if short(n) in modules else node.module for n in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {short(name) for name in names if name.split(".")[0] == "nvib_jax"}
    assert found <= set(modules), f"{path} imports {found - set(modules)}"
    return found


def short(module):
    """A module's name in the library; the library's own is `__init__`."""
    return module.removeprefix("nvib_jax").removeprefix(".") or "__init__"


def test_no_import_goes_up():
    up = set()
    for name, found in imports().items():
        for other in found:
            here, there = (FLOORS.index(module.split(".")[0]) for module in (name, other))
            if there > here:
                up.add((name, other))
    assert not up


def test_no_imports_in_a_circle():
    graphlib.TopologicalSorter(imports()).prepare()  # raises CycleError, which names the circle
