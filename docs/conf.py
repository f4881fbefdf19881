# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration: nothing here or in the built pages needs a network."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import api_pages  # noqa: E402
import backend_tabs  # noqa: E402
import decision_tree  # noqa: E402

project = "pyro-spread"
copyright = "Contributors to the pyro-spread project"
extensions = [
    "myst_nb",  # Markdown, and pages whose cells are run
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax and its fonts, out of a package instead of a CDN
]
exclude_patterns = ["_build", "_ext", "_kernels", "_templates", "images/*.md"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = "pyro-spread"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["custom.css"]
pygments_style = "friendly"
pygments_dark_style = "monokai"

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_inline", "deflist"]
myst_heading_anchors = 3

# Cells are run at the first build, and again only where they changed; by the Python that builds,
# and without the kernel's remarks about itself.
os.environ["JUPYTER_PATH"] = str(HERE / "_kernels")
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # there are no widgets on a page
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "error"  # a warning on a page is a fault of the page

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autosummary_generate = True
autosummary_generate_overwrite = True
autosummary_ignore_module_all = False

# Before Sphinx looks for source files: the lists of public names and the picture of the decisions.
api_pages.write(HERE / "api")
autosummary_context = api_pages.context()
decision_tree.write(HERE / "images" / "decision.svg")


def setup(app):
    """Leave members out that the backends document; mend links of source pages; make tabs."""
    app.connect("autodoc-skip-member", api_pages.skip_foreign)
    app.connect("html-page-context", api_pages.mend_source_links)
    app.connect("doctree-read", backend_tabs.make)
