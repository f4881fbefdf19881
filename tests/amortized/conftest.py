# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Tests of amortised guides run once with each backend."""

import importlib

import pytest


@pytest.fixture(scope="module", params=["pyro", "numpyro"])
def lib(request):
    """The backend's programs for amortised guides: ``pyro_amortised`` or its twin."""
    return importlib.import_module(f"{request.param}_amortised")
