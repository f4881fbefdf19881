# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration."""

project = "pyro-spread"
copyright = "Contributors to the pyro-spread project"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_design",
]
myst_enable_extensions = ["dollarmath"]
# The tutorials are run when the site is built, and again only when they have changed.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
# A warning in a tutorial is a fault of the tutorial.
nb_output_stderr = "error"
html_theme = "furo"
html_title = "pyro-spread"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
