# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Float64 in both backends, restored afterwards."""

import jax
import pytest
import torch


@pytest.fixture(autouse=True)
def _double_precision():
    before = torch.get_default_dtype(), jax.config.jax_enable_x64
    torch.set_default_dtype(torch.float64)
    jax.config.update("jax_enable_x64", True)
    yield
    torch.set_default_dtype(before[0])
    jax.config.update("jax_enable_x64", before[1])
