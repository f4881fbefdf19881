# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Fill in the templates of a report. Jinja2 escapes whatever they show."""

from __future__ import annotations

from typing import Any

from spread_analysis.report.words import number
from spread_core.optional import import_extra


def render(template: str, **values: Any) -> str:
    """
    Fill in one of the templates.

    :param template: the file in the folder ``templates``.
    :param values: what it shows.
    :raises ImportError: if Jinja2 is missing.
    """
    jinja2 = import_extra("jinja2", "report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spread_analysis.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    text: str = environment.get_template(template).render(values)
    return text
