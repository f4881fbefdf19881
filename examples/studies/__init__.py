# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Code that the programs of both backends share: options, data, training curves, figures, tables.
"""
