# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every loss says whether it is exact under data parallelism."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def losses(package):
    """Public classes that go into an SVI as its loss."""
    elbo = importlib.import_module(f"{package.split('_')[0]}.infer.elbo").ELBO
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in public.items()
        if isinstance(value, type) and issubclass(value, elbo)
    }


@pytest.mark.parametrize("package", ["pyro_spread", "numpyro_spread"])
def test_every_loss_says_what_it_is_under_data_parallelism(package):
    found = losses(package)
    assert len(found) >= 9
    page = (ROOT / "docs" / "distributed.md").read_text()
    for name, loss in found.items():
        text = " ".join((loss.__doc__ or "").split())
        said = re.search(r"\*\*Data parallelism\*\* \(.*?\): (\w+)", text)
        assert said, name
        assert said[1] == "exact", name
        assert f"`{name}`" in page, name
