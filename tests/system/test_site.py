# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The built site, opened page by page in a real browser."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

selenium = pytest.importorskip("selenium", reason="needs the extra 'docs'")
pytest.importorskip("myst_nb", reason="needs the extra 'docs'")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from site_visits import (  # noqa: E402
    broken_links,
    browser,
    console_errors,
    find_browser,
    missing_pictures,
    pages_of,
    requests_elsewhere,
    requests_of,
    served,
    undrawn_formulas,
    visit,
    visit_all,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_browser() is None,
        reason="no browser: install chromium and chromedriver (Debian: chromium chromium-driver)",
    ),
]
ROOT = Path(__file__).parents[2]
PACKAGES = ("pyro_spread", "numpyro_spread", "spread_analysis", "spread_analysis.reference")


@pytest.fixture(scope="module")
def site():
    """The folder of the built site: what ``make docs`` makes, brought up to date."""
    folder = ROOT / "docs" / "_build" / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def base(site):
    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def visits(driver, base, site):
    return visit_all(driver, base, pages_of(site))


def test_there_are_pages(visits):
    assert len(visits) > 150


def test_no_page_has_an_error_in_the_console(visits):
    assert not console_errors(visits)


def test_every_internal_link_resolves(visits, base, site):
    assert sum(link.startswith(base) for v in visits.values() for link in v.seen["links"]) > 1000
    assert not broken_links(visits, base, site)


def test_formulas_are_drawn(visits):
    assert sum(len(v.seen["formulas"]) for v in visits.values()) > 200
    assert not undrawn_formulas(visits)


def test_every_picture_loads(visits):
    assert sum(len(v.seen["images"]) for v in visits.values()) > 10
    assert not missing_pictures(visits)
    assert visits["choose.html"].seen["trees"][0] > 100_000


def test_nothing_is_asked_for_elsewhere(visits, base):
    assert sum(url.startswith(base) for v in visits.values() for url in v.requests) > 1000
    assert not requests_elsewhere(visits, base)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_page(package, visits):
    for name in importlib.import_module(package).__all__:
        full = f"{package}.{name}"
        page = f"api/{full}.html" if full in PACKAGES else f"api/{package}/{full}.html"
        assert page in visits, full
        assert full in visits[page].seen["ids"] or f"module-{full}" in visits[page].seen["ids"]


def test_search_finds_the_loss(driver, base):
    driver.get(base + "search.html")
    field = driver.find_element(By.CSS_SELECTOR, "input[name=q]")
    field.send_keys("SpreadELBO", Keys.ENTER)

    def found(driver):
        links = driver.find_elements(By.CSS_SELECTOR, "#search-results li a")
        return [link.get_attribute("href") for link in links if "SpreadELBO" in link.text]

    links = WebDriverWait(driver, 30).until(found)
    assert any("pyro_spread.SpreadELBO.html" in link for link in links)
    visit(driver, links[0])
    assert "SpreadELBO" in driver.find_element(By.TAG_NAME, "h1").text
    requests_of(driver)


FAULTS = {
    "console": "<script>nothing.at.all()</script>",
    "file": '<a href="missing.html">x</a>',
    "anchor": '<a href="other.html#missing">x</a>',
    "formula": '<span class="math">plain</span>',
    "raw": r"<p>left as it was: \(x^2\)</p>",
    "picture": '<img src="data:image/png;base64,AAAA">',
    "elsewhere": '<img src="http://192.0.2.1/pixel.png">',
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault, driver, tmp_path):
    page = "<!doctype html><link rel=icon href=data:,><body>{}</body>"
    (tmp_path / "other.html").write_text(page.format('<p id="there">x</p>'))
    (tmp_path / "index.html").write_text(page.format(FAULTS[fault]))
    with served(tmp_path) as base:
        visits = visit_all(driver, base, ["index.html", "other.html"])
        seen = {
            "console": console_errors(visits),
            "links": broken_links(visits, base, tmp_path),
            "formulas": undrawn_formulas(visits),
            "pictures": missing_pictures(visits),
            "elsewhere": requests_elsewhere(visits, base),
        }
    expected = {"file": "links", "anchor": "links", "formula": "formulas", "raw": "formulas",
                "picture": "pictures"}.get(fault, fault)  # fmt: skip
    assert seen[expected]
    others = {kind for kind, faults in seen.items() if faults} - {expected}
    # A picture that does not come from elsewhere is missing as well, and the console says so.
    assert others <= ({"pictures", "console"} if fault == "elsewhere" else set())
