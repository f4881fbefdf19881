# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Reads a report as a browser would, as far as that needs none."""

from html.parser import HTMLParser

_VOID = {"meta", "link", "img", "br", "hr", "input"}
SECTIONS = [
    "curves",
    "samples",
    "metrics",
    "calibration",
    "overlap",
    "posterior",
    "warnings",
    "settings",
]


class Page(HTMLParser):
    """The sections' texts, references, tags and pictures of a page; tags must be nested."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.raw = text
        self.sections: dict[str, str] = {}
        self.pictures: dict[str, list[str]] = {}
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.title = ""
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        found = dict(attrs)
        self.references += [v for k, v in found.items() if k in ("src", "href", "srcset", "action")]
        self.handlers += [k for k in found if k.startswith("on")]
        if tag == "section":
            self._section = found["id"]
            self.sections[self._section] = ""
            self.pictures[self._section] = []
        if tag == "img":
            self.pictures[self._section].append(found["src"])
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data):
        if self._open and self._open[-1] == "title":
            self.title += data
        if self._section:
            self.sections[self._section] += data + " "


def read_page(path) -> Page:
    """The page, after the checks that hold for every one."""
    page = Page(path.read_text(encoding="utf-8"))
    assert list(page.sections) == SECTIONS
    assert page.references
    for reference in page.references:
        assert reference.startswith(("data:", "#")), reference[:80]
    assert not page.handlers
    assert not page.tags & {"script", "iframe", "object", "embed", "base", "form"}
    style = page.raw.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    return page
