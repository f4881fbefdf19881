# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The wheel and the sdist as users meet them: in empty environments, with each extra alone."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("pyro_spread", "numpyro_spread", "spread_core", "spread_analysis")
TORCH, JAX = ("torch", "pyro"), ("jax", "jaxlib", "numpyro", "optax")
ANALYSIS = ("matplotlib", "arviz", "sklearn")

PYRO_TRAINS = """
import pyro, torch, pyro.distributions as dist
from pyro.infer import SVI
from pyro_spread import GaussianNoise, SpreadELBO
def model(x):
    w = pyro.param("w", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Delta(w.expand(len(x))), obs=x)
loss = SpreadELBO({"x": GaussianNoise(0.5)})
svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), loss)
for _ in range(200):
    svi.step(torch.full((50,), 2.0))
assert abs(pyro.param("w").item() - 2) < 0.2, pyro.param("w")
"""
NUMPYRO_TRAINS = """
import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
from numpyro.infer import SVI
from numpyro_spread import GaussianNoise, SpreadELBO
def model(x):
    w = numpyro.param("w", 0.0)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Delta(jnp.broadcast_to(w, (len(x),))), obs=x)
loss = SpreadELBO({"x": GaussianNoise(0.5)})
guide = lambda x: None
svi = SVI(model, loss.register(model, guide), numpyro.optim.Adam(0.1), loss)
result = svi.run(jax.random.key(0), 200, jnp.full(50, 2.0), progress_bar=False)
assert abs(float(result.params["w"]) - 2) < 0.2, result.params
"""
BASE_MEASURES = """
import numpy as np
from spread_analysis import mmd2
rng = np.random.default_rng(0)
x, y = rng.normal(size=(200, 2)), rng.normal(size=(200, 2))
assert abs(mmd2(x, y)) < 0.05 < mmd2(x, y + 2)
"""
ANALYSIS_MEASURES = (
    BASE_MEASURES
    + """
from spread_analysis import load_dataset
assert load_dataset("digits").image_shape == (8, 8)
"""
)


def python_for(version):
    """An interpreter of this version that starts, or None."""
    candidates = [shutil.which(f"python{version}")]
    candidates += map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for python in filter(None, candidates):
        said = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
        if said.stdout.startswith(f"Python {version}."):
            return python
    return None


def run(*command, cwd=None):
    # Neither the checkout nor the environment that runs the tests may help out.
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the sdist, and the wheel that was built from it."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    # What the checkout's owner has lying about is no part of it.
    kept_out = shutil.ignore_patterns(
        ".*", "*.egg-info", "build", "dist", "_build", "__pycache__", "*-output"
    )
    shutil.copytree(ROOT, source / "pyro-spread", ignore=kept_out)
    run(sys.executable, "-m", "build", "--outdir", str(output), str(source / "pyro-spread"))
    return output


@pytest.fixture(scope="module")
def wheel(dist):
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def install(wheel, tmp_path_factory):
    """A function that installs the wheel with extras into an empty environment."""

    def install(extras, python=sys.executable, pinned=True):
        home = tmp_path_factory.mktemp("env")
        run(python, "-m", "venv", str(home))
        inside = str(home / "bin" / "python")
        pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if pinned:
            pip += ["--constraint", str(ROOT / "constraints.txt")]
        if "pyro" in extras.split(","):
            # First and alone, see the Makefile.
            run(*pip, "torch")
        run(*pip, f"{wheel}[{extras}]" if extras else str(wheel), cwd=home)
        run(inside, "-m", "pip", "check")
        return inside

    return install


def test_metadata_is_what_an_index_accepts(dist):
    said = run(sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir()))
    assert said.count("PASSED") == 2


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {
        str(path.relative_to(ROOT)) for package in PACKAGES for path in ROOT.glob(f"{package}/**/*")
        if path.suffix in (".py", ".html", ".css") or path.name == "py.typed"
    }  # fmt: skip
    assert wanted == {name for name in names if ".dist-info/" not in name}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_can_be_tested_and_documented(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "Makefile",
                   "docs/conf.py", "tests/conftest.py", "examples/demo.py",
                   "benchmarks/run.py"):  # fmt: skip
        assert needed in names
    api = {name for name in names if name.startswith("docs/api/")}
    assert "docs/api/index.md" in api
    assert not {name for name in names if name.endswith(".pyc") or "_build/" in name}
    assert not {name for name in api if name.endswith(".rst")}


@pytest.mark.parametrize(
    ("extras", "trains", "absent"),
    [
        ("", BASE_MEASURES, (*TORCH, *JAX, *ANALYSIS, "flax")),
        ("pyro", PYRO_TRAINS, (*JAX, *ANALYSIS, "flax")),
        ("numpyro", NUMPYRO_TRAINS, (*TORCH, *ANALYSIS, "flax")),
        ("analysis", ANALYSIS_MEASURES, (*TORCH, *JAX, "flax")),
        ("numpyro,flax", "import flax\n" + NUMPYRO_TRAINS, TORCH),
        ("pyro,lightning", "import lightning\n" + PYRO_TRAINS, JAX),
        ("flows", "import flowjax.flows, zuko.flows", ("pyro", "numpyro", *ANALYSIS, "flax")),
        ("tensorboard", "import tensorboard, tensorboardX", (*TORCH, *JAX, *ANALYSIS)),
    ],
    ids=["base", "pyro", "numpyro", "analysis", "flax", "lightning", "flows", "tensorboard"],
)
def test_each_extra_alone(install, tmp_path, extras, trains, absent):
    python = install(extras)
    found = (
        "import importlib.util as u\n"
        f"print([m for m in {absent!r} if u.find_spec(m) is not None])\n"
        "import spread_analysis; print(spread_analysis.__file__)"
    )
    there, where = run(python, "-c", found, cwd=tmp_path).splitlines()
    assert there == "[]"
    assert str(ROOT) not in where
    run(python, "-c", trains, cwd=tmp_path)
    for package, needed in (("pyro_spread", "torch"), ("numpyro_spread", "jax")):
        if needed in absent:
            refused = f"try:\n    import {package}\nexcept ImportError as e:\n    print(e)"
            extra = package.removesuffix("_spread")
            said = run(python, "-c", refused, cwd=tmp_path)
            assert f"pip install 'pyro-spread[{extra}]'" in said


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_python(install, tmp_path, version):
    python = python_for(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    inside = install("numpyro,flax,analysis", python)
    assert run(inside, "--version").startswith(f"Python {version}.")
    run(inside, "-W", "error::SyntaxWarning", "-c", NUMPYRO_TRAINS, cwd=tmp_path)
    run(inside, "-c", ANALYSIS_MEASURES, cwd=tmp_path)
    # Pyro's half has to compile at least; a build of torch without CUDA is there for 3.11 only.
    packages = Path(run(inside, "-c", "import spread_analysis as s; print(s.__file__)").strip())
    run(inside, "-W", "error", "-m", "compileall", "-q", "-f",
        str(packages.parents[1] / "pyro_spread"))  # fmt: skip
