# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What importing the package loads, and what a missing extra says."""

import json
import subprocess
import sys

import numpy as np
import pytest

import spread_analysis as sa

FORBIDDEN = (
    "torch", "pyro", "jax", "jaxlib", "numpyro", "sklearn", "matplotlib", "arviz", "jinja2", "ot",
)  # fmt: skip


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_loads_numpy_and_scipy_only():
    result = run(
        "import json, sys, spread_analysis\n"
        "print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    )
    assert result.returncode == 0, result.stderr
    loaded = set(json.loads(result.stdout))
    assert {"numpy", "scipy"} <= loaded
    assert not loaded.intersection(FORBIDDEN)


def test_using_everything_loads_no_backend():
    result = run(
        "import sys, numpy as np, spread_analysis as sa\n"
        "x = np.random.default_rng(0).standard_normal((10, 2))\n"
        "sa.mmd2(x, x), sa.sliced_wasserstein(x, x), sa.frechet_distance(x, x)\n"
        "sa.precision_recall(x, x), sa.c2st(x, x, hidden_layer_sizes=(2,))\n"
        "sa.plot_density_with_samples(x)\n"
        "sa.student_t_characteristic_function(1.0, 3.0, 1.0)\n"
        "assert not {'torch', 'pyro', 'jax', 'numpyro'} & set(sys.modules)"
    )
    assert result.returncode == 0, result.stderr


IMAGES = np.zeros((2, 2, 2))
SAMPLES = np.random.default_rng(0).standard_normal((10, 2))


@pytest.mark.parametrize(
    ("call", "module", "message"),
    [
        (lambda: sa.c2st(SAMPLES, SAMPLES), "sklearn.model_selection", "`spread_analysis.c2st`"),
        (
            lambda: sa.precision_recall(SAMPLES, SAMPLES),
            "sklearn.neighbors",
            "`spread_analysis.precision_recall` needs scikit-learn",
        ),
        (
            lambda: sa.plot_sample_grid(IMAGES),
            "matplotlib.figure",
            "`spread_analysis.plot_sample_grid` needs matplotlib",
        ),
        (lambda: sa.plot_reconstructions(IMAGES, IMAGES), "matplotlib.figure", "plot_reconstr"),
        (lambda: sa.plot_loss_curve([1.0]), "matplotlib.figure", "plot_loss_curve"),
        (lambda: sa.plot_density_with_samples(SAMPLES), "matplotlib.figure", "plot_density"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, call, module, message):
    monkeypatch.setitem(sys.modules, module, None)  # Python's own way to make an import fail
    with pytest.raises(ImportError, match=message) as caught:
        call()
    assert "pip install 'pyro-spread[analysis]'" in str(caught.value)


def test_all_is_complete_and_sorted():
    for module in (sa, sa.reference):
        names = sorted(module.__all__, key=lambda n: (not n.isupper(), n[0].islower(), n))
        assert list(module.__all__) == names  # constants, classes, functions
        for name in module.__all__:
            value = getattr(module, name)
            assert value.__doc__, name
            assert not name.startswith("_")
