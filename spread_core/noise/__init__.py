# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the noise kernels of both backends share: checks, shapes, formulas and docstrings."""
