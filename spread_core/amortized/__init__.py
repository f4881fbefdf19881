# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Amortised posteriors by conditional mixtures: mathematics and bookkeeping of both backends."""
