# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Opens the pages of a site in a headless browser and says what is wrong with them."""

import functools
import json
import shutil
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urldefrag

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
]

# Waits for formulas and pictures, then reports. Code and the parts that screen readers alone see
# are not looked through for formulas that were left as they were.
LOOK = r"""
const done = arguments[arguments.length - 1];
(async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  const images = [...document.images];
  for (const image of images) {
    image.loading = "eager";
    try { await image.decode(); } catch (error) { /* reported by its size */ }
  }
  const href = a => new URL(a.getAttribute("href"), document.baseURI).href;
  const box = e => { const b = e.getBoundingClientRect(); return b.width * b.height; };
  const drawn = e => [...e.querySelectorAll("mjx-container")].some(m => box(m) > 0)
    && !e.querySelector("mjx-merror");
  const text = document.body.cloneNode(true);
  text.querySelectorAll("pre, code, script, style, svg").forEach(e => e.remove());
  const hidden = e => e.closest("details:not([open]), .tab-set, [hidden]") !== null;
  done({
    links: [...document.querySelectorAll("a[href]")].map(href),
    ids: [...document.querySelectorAll("[id], a[name]")].map(e => e.id || e.name),
    formulas: [...document.querySelectorAll(".math")].filter(e => !hidden(e))
      .map(e => [e.textContent.slice(0, 60), drawn(e)]),
    raw: (text.textContent.match(/\\[(\[][^\n]{0,60}|\$\$[^\n]{0,60}/g) || []),
    images: images.map(i => [i.src.slice(0, 200), i.naturalWidth]),
    fonts: [...document.fonts].filter(f => f.status === "error").map(f => f.family),
    trees: [...document.querySelectorAll("svg.tree")].map(box),
  });
})();
"""


class Visit(NamedTuple):
    """What was seen on one page."""

    seen: dict
    console: list
    requests: list


@contextmanager
def served(folder):
    """Serve ``folder`` on loopback; the address, with a slash at its end."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def find_browser():
    """Paths of browser and driver; None where one of them is missing."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def browser(profile, width=1280):
    """A headless browser with an empty profile, which logs console and requests."""
    binary, driver_path = find_browser()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


def requests_of(driver):
    """Addresses that were asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def visit(driver, address):
    """Open a page, wait until it is drawn, and report."""
    driver.get(address)
    seen = driver.execute_async_script(LOOK)
    console = [
        entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"
    ]
    return Visit(seen, console, requests_of(driver))


def pages_of(folder):
    """The pages of a site that Sphinx built; others may be left from earlier builds."""
    index = (Path(folder) / "searchindex.js").read_text()
    names = json.loads(index.partition("(")[2].rpartition(")")[0])["docnames"]
    modules = sorted(
        p.relative_to(folder).as_posix() for p in Path(folder, "_modules").rglob("*.html")
    )
    return [f"{name}.html" for name in [*names, "genindex", "py-modindex", "search"]] + modules


def visit_all(driver, base, pages):
    """Visit all ``pages`` of what is served at ``base``: dict from page to visit."""
    return {page: visit(driver, base + page) for page in pages}


def console_errors(visits):
    """Errors in the console, by page."""
    return [f"{page}: {line}" for page, v in visits.items() for line in v.console]


def requests_elsewhere(visits, base):
    """Requests that leave the server."""
    own = (base, "data:", "blob:", "chrome:", "about:")
    return [
        f"{page}: {url}"
        for page, v in visits.items()
        for url in v.requests
        if not url.startswith(own)
    ]


def broken_links(visits, base, folder):
    """Internal links whose file or anchor does not exist."""
    ids = {page: set(v.seen["ids"]) for page, v in visits.items()}
    broken = []
    for page, v in visits.items():
        for link in set(v.seen["links"]):
            if not link.startswith(base):
                continue
            target, anchor = map(unquote, urldefrag(link.removeprefix(base)))
            target = target.partition("?")[0]
            target = target + "index.html" if target.endswith("/") or not target else target
            if not (Path(folder) / target).is_file():
                broken.append(f"{page}: no file {target}")
            elif anchor and target in ids and anchor not in ids[target]:
                broken.append(f"{page}: no anchor {target}#{anchor}")
    return broken


def undrawn_formulas(visits):
    """Formulas without a drawing, with an error in it, or left as they were."""
    wrong = [
        f"{page}: {words}" for page, v in visits.items() for words, drawn in v.seen["formulas"]
        if not drawn
    ]  # fmt: skip
    left = [f"{page}: {raw}" for page, v in visits.items() for raw in v.seen["raw"]]
    return wrong + left + [f"{page}: {f}" for page, v in visits.items() for f in v.seen["fonts"]]


def missing_pictures(visits):
    """Pictures that did not load."""
    return [
        f"{page}: {src}"
        for page, v in visits.items()
        for src, width in v.seen["images"]
        if not width
    ]
