"""Set up jax before anything imports it: 8 simulated devices, strict promotions, quick compiles."""

import gc
import os
import signal
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

# Level 0: the tests' time is LLVM's, a sampler alone takes it seconds; the arithmetic is the same.
# The older code generator saves as much again; later versions have no other, and no such flag.
# A worker has a core to itself, so that to cut a program into parts and to order it for several
# threads wins nothing, and took a tenth of the time of two files.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
        "--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import jax
import pytest
from long_cases import CASES

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# jax collects its own garbage whenever Python does, and Python does so every 700 objects; tracing
# makes millions.
gc.set_threshold(50_000, 20, 50)

# A shell that starts pytest in the background has it ignore Ctrl-C, and so would all that the tests
# start: a signal that was ignored stays so, one that is handled is the default's after an exec.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config, items):
    """Mark the cases of `long_cases`; a pattern of a file that fits none of its tests is stale."""
    names = {}
    for item in items:
        names.setdefault(item.path.name, []).append(item)
    whole = not any("::" in argument for argument in config.args)
    for file, patterns in CASES.items():
        if not any(Path(__file__).parent.rglob(file)):
            raise pytest.UsageError(f"long_cases.py: there is no {file}")
        chosen = long_of(patterns, names.get(file, []))
        for pattern in patterns if whole and file in names else ():
            if chosen == long_of([p for p in patterns if p != pattern], names[file]):
                raise pytest.UsageError(f"long_cases.py: {pattern!r} of {file} changes nothing")
        for item in chosen:
            item.add_marker(pytest.mark.long)


def long_of(patterns, items):
    """The tests that patterns name, without those that one with a `!` takes back."""
    named: dict[bool, set[pytest.Item]] = {True: set(), False: set()}
    for pattern in patterns:
        back = pattern.startswith("!")
        named[back].update(i for i in items if fnmatchcase(i.name, pattern.removeprefix("!")))
    return named[False] - named[True]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The recorded arrays beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside this checkout: recorded arrays are not published")
    return SHARED


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Thousands of compiled programs are gigabytes: they are dropped between files, if they are."""
    yield
    pages = Path("/proc/self/statm")
    if pages.exists() and int(pages.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") > 2 << 30:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def no_leaks():
    """Fail on a tracer that outlives its transformation."""
    with jax.checking_leaks():
        yield


@pytest.fixture
def simulated_tpu():
    """Pallas's TPU kernels run in its simulation of a TPU, uninitialised memory full of NaN."""
    from jax.experimental.pallas import tpu as pltpu

    with pltpu.force_tpu_interpret_mode():
        yield
