# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Code that the three public packages share. Private: any name may change at any time."""
