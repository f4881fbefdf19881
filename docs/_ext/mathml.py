# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Formulas as MathML: converted by docutils at build time, drawn by the browser, without scripts."""

from __future__ import annotations

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)


def _convert(node, as_block):
    try:
        # Blank lines mean nothing in a formula, but the converter does not know that.
        code = "\n".join(line for line in node.astext().splitlines() if line.strip())
        return tex2mathml(code, as_block=as_block)
    except MathError as error:
        logger.warning("formula %r: %s", node.astext(), error, location=node)
        return f"<code>{nodes.unescape(node.astext())}</code>"


def visit_math(self, node):
    """Write an inline formula."""
    self.body.append(f'<span class="math notranslate nohighlight">{_convert(node, False)}</span>')
    raise nodes.SkipNode


def visit_displaymath(self, node):
    """Write a displayed formula, with its number if it has one."""
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node.get("number"):
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(_convert(node, True) + "</div>\n")
    raise nodes.SkipNode


def setup(app):
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
