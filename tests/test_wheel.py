"""What is published works without the checkout: a wheel in an environment of its own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nvib_jax

ROOT = Path(__file__).parent.parent

SMOKE = """
import pathlib, sys, jax, jax.numpy as jnp, nvib_jax as nvib
assert pathlib.Path(nvib.__file__).is_relative_to(sys.prefix), nvib.__file__
x, mask = jax.random.normal(jax.random.key(0), (2, 5, 8)), jnp.ones((2, 5), bool)
prior = nvib.Prior.standard(8, alpha_delta=0.3)

def loss(x):
    posterior = nvib.make_posterior(x, 0 * x - 2, x[..., 0], mask, prior)
    mixture = nvib.sample(jax.random.key(1), posterior)
    kernel = jnp.ones((8, 2, 4)) / 8
    out = nvib.denoising_attention(
        jnp.ones((2, 3, 2, 4)), mixture, key_kernel=kernel, value_kernel=kernel)
    return jnp.sum(out ** 2) + jnp.sum(nvib.kl_gaussian(posterior, prior))

assert jnp.isfinite(jax.jit(jax.grad(loss))(x)).all()
from flax import nnx
from nvib_jax.modules import NVIB, linen
assert NVIB(8, prior=prior, rngs=nnx.Rngs(0))(x, mask).mean.shape == (2, 6, 8)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    subprocess.run(command, check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.long
def test_what_is_in_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "nvib_jax/py.typed" in names
    assert "nvib_jax/data/english.txt" in names
    assert not [n for n in names if n.startswith(("tests", "configs", "colab", "tpu_scripts"))]
    presets = {f"nvib_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert {n for n in names if n.startswith("nvib_jax/configs/")} == presets


@pytest.mark.long
def test_alone_in_an_environment(wheel, tmp_path):
    """The functions with what the wheel itself asks for, and a way out for what needs more."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "XLA_FLAGS", "VIRTUAL_ENV")
    }
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (tmp_path / "empty").mkdir()

    def run(*command, **options):
        command = [tmp_path / "venv" / "bin" / command[0], *command[1:]]
        how = {"cwd": tmp_path / "empty", "env": environment, "text": True, "capture_output": True}
        return subprocess.run(command, **how, **options)

    installed = run("python", "-m", "pip", "install", "-q", wheel)
    assert installed.returncode == 0, installed.stderr
    smoke = run("python", "-W", "error", "-c", SMOKE)
    assert smoke.returncode == 0, smoke.stderr
    assert run("nvib").stdout.startswith("usage: nvib COMMAND")
    assert run("nvib", "--version").stdout == f"{nvib_jax.__version__}\n"
    doctor = run("nvib", "doctor").stdout
    assert "sentencepiece missing" in doctor
    assert "pip install 'nvib-jax[train]' has what is missing" in doctor
    preset = "from nvib_jax.presets import load_preset as load; print(load('pod').train.steps)"
    assert int(run("python", "-c", preset).stdout) > 0  # the file of one, which reads another's
    train = run("nvib", "train", "quickstart")
    assert train.returncode == 1
    assert train.stderr == (
        "nvib train: No module named 'tyro'; pip install 'nvib-jax[train]' has it\n"
    )
