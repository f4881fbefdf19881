# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""``examples/studies``, for programs that are started in this folder."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "examples" / "studies")]
