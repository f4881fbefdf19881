# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
The half of each loss that is the same in both backends: arguments, their checks, documentation and
what the reported number is. The backends add how a step is computed.
"""
