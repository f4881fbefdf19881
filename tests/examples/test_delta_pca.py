# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The delta-PCA examples run in both backends and get the clean covariance."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from studies.pca_study import draw_data

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    script = ROOT / "examples" / backend / "delta_pca.py"
    done = subprocess.run(
        [sys.executable, str(script), "--smoke-test", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^ +(\S+) +(\S+) \(\S+\) +(\S+) \(\S+\) +(\S+) \(\S+\)$", done.stdout, re.M)
    ((scale, clean, one_sided, biased),) = np.array(rows, float)
    assert scale == 1.0
    # A few hundred steps: the full run, in the example itself, gets below 1 %.
    assert clean < 0.05
    assert one_sided > 0.3
    assert biased < 0.02
    picture = tmp_path / "out" / "delta_pca.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_data_have_the_stated_covariance():
    x, covariance = draw_data(3, 50)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(x.T @ x / len(x), covariance, atol=1e-12)
