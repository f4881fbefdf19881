# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The code that README and docs print runs as it is printed, and trains."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md"]
DOCS = ROOT / "docs"


def _programs():
    for page in PAGES:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
            if "import torch" in code or "import numpyro" in code:
                backend = "numpyro" if "import numpyro" in code else "pyro"
                yield pytest.param(code, id=f"{page.name}-{backend}")


def _cells(page):
    return re.findall(r"```\{code-cell\} ipython3\n(.*?)```", page.read_text(), flags=re.DOTALL)


_IMPROVES = {
    "pyro": "assert svi.evaluate_loss(data) < 0.5 * first",
    "numpyro": "assert result.losses[-1] < 0.5 * result.losses[0]",
}


@pytest.mark.parametrize("code", list(_programs()))
def test_printed_program_trains(code):
    backend = "numpyro" if "import numpyro" in code else "pyro"
    if backend == "pyro":
        code = re.sub(r"(svi = SVI\(.*\)\n)", r"\1first = svi.step(data)\n", code)
    program = code + "\n" + _IMPROVES[backend]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_goes_on_with_other_losses():
    first, second = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), flags=re.DOTALL)[:2]
    check = """
for step in range(20):
    assert 0 <= gan.step(data) < 0.6932
before = mmd.evaluate_loss(data)
for step in range(100):
    mmd.step(data)
assert mmd.evaluate_loss(data) < 0.7 * before
"""
    # Before its decoder has been trained, the model has something to learn from them.
    seed = "pyro.set_rng_seed(0)\n"
    program = first.replace("range(1000)", "range(1)") + second + check
    program = program.replace("data = ", seed + "data = ", 1)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_the_start_trains(backend):
    cells = _cells(DOCS / "start" / f"{backend}.md")
    (last,) = (i for i, cell in enumerate(cells) if "losses =" in cell)
    program = "\n".join(cells[: last + 1])
    done = subprocess.run(
        [sys.executable, "-c", program + "\nassert losses[-1] < 0.5 * losses[0]"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_starts_say_the_same():
    """The two pages differ in their code, in names, and in what ``register`` is for."""

    def words(backend):
        text = (DOCS / "start" / f"{backend}.md").read_text()
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("NumPyro", "Pyro")
        paragraphs = [p.strip() for p in text.replace("numpyro", "pyro").split("\n\n")]
        return [p for p in paragraphs if p and not p.startswith("`loss.register")]

    assert words("pyro") == words("numpyro")


def test_code_of_the_pages_is_run():
    """Cells are run when the site is built; a plain block of Python would never be."""
    pages = [p for p in DOCS.rglob("*.md") if "_build" not in p.parts]
    plain = [p.name for p in pages if "```python" in p.read_text()]
    assert len(pages) > 15
    assert not plain, "make these blocks {code-cell} ipython3, and their page a MyST notebook"
