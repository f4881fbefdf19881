# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Pure functions of arrays, for PyTorch, JAX and NumPy alike: what comes in also comes out."""
