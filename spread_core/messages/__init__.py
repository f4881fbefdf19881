# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Texts of errors and warnings: each names the site or argument and says what to do."""
