"""Set up jax before anything imports it: 8 simulated devices, strict promotions, quick compiles."""

import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path

# Level 0: the tests' time is LLVM's, a sampler alone takes it seconds; the arithmetic is the same.
# The older code generator saves as much again; later versions have no other, and no such flag.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell that starts pytest in the background has it ignore Ctrl-C, and so would all that the tests
# start: a signal that was ignored stays so, one that is handled is the default's after an exec.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


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
