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


@pytest.mark.slow
@pytest.mark.parametrize("code", list(_programs()))
def test_printed_program_trains(code):
    backend = "numpyro" if "import numpyro" in code else "pyro"
    if backend == "pyro":
        code = re.sub(r"(svi = SVI\(.*\)\n)", r"\1first = svi.step(data)\n", code)
    program = code + "\n" + _IMPROVES[backend]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_readme_prints_a_loss_close_to_the_best():
    page = PAGES[0].read_text()
    code = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    end, best = (
        float(re.search(rf"(\S+){after}", done.stdout)[1])
        for after in (" at the end", ", the exact")
    )
    assert 0 <= end - best < 0.05
    assert re.search(r"^best: .*$", done.stdout, flags=re.MULTILINE)[0] in page


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_readme_makes_a_posterior_for_a_simulator():
    program = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), flags=re.DOTALL)[2]
    check = """
assert 0.4 < draws["beta"].mean() < 0.6
assert draws["beta"].std() < 0.2 * dist.LogNormal(-0.9, 0.5).variance.sqrt()
"""
    done = subprocess.run([sys.executable, "-c", program + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True"  # of its check


def _backend(cell):
    """The backend that a cell names in its first line."""
    return cell.partition("\n")[0] if cell.startswith(("# Pyro\n", "# NumPyro\n")) else None


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["Pyro", "NumPyro"])
@pytest.mark.parametrize("page", ["index.md", "start/index.md"])
def test_the_start_trains(page, backend):
    cells = [cell for cell in _cells(DOCS / page) if _backend(cell) == f"# {backend}"]
    (last,) = (i for i, cell in enumerate(cells) if "losses =" in cell)
    program = "\n".join(cells[: last + 1])
    done = subprocess.run(
        [sys.executable, "-c", program + "\nassert losses[-1] < 0.5 * losses[0]"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_the_old_starts_lead_to_the_new_one(backend):
    moved = (DOCS / "start" / f"{backend}.md").read_text()
    assert f"url=index.html?tab={backend}" in moved


NEWCOMERS = ["index.md", "start/index.md", "from/*.md", "tutorials/*.md"]


@pytest.mark.parametrize(
    "page",
    [page for pattern in NEWCOMERS for page in sorted(DOCS.glob(pattern))],
    ids=lambda page: str(page.relative_to(DOCS)),
)
def test_every_block_of_these_pages_stands_in_both_tabs(page):
    """Prose between two cells ends a set of tabs; each set has both backends."""
    sets = [set()]
    for part in re.split(
        r"(```\{code-cell\} ipython3\n.*?```\n)", page.read_text(), flags=re.DOTALL
    ):
        if not part.startswith("```{code-cell}"):
            if part.strip():
                sets.append(set())
            continue
        code = re.sub(r"^```\{code-cell\} ipython3\n(---\n.*?\n---\n|(:[^\n]*\n)+\n*)?", "", part,
                      flags=re.DOTALL)  # fmt: skip
        backend = _backend(code)
        if backend:
            sets[-1].add(backend)
        else:
            shared = re.search(r"^(import|from) (pyro|numpyro|torch|jax|optax|flax)", code, re.M)
            assert not shared, f"without a tab: {code}"
    assert not [found for found in sets if len(found) == 1]


def test_the_cells_of_a_backend_see_only_its_names(monkeypatch):
    client, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat.v4")
    monkeypatch.setenv("JUPYTER_PATH", str(DOCS / "_kernels"))
    cells = [
        "a, b = 1, 2",
        "# Pyro\nb = 3\ndef total():\n    return a + b + c",
        "# NumPyro\nb = 4",
        "c = 10",
        "# Pyro\ntotal()",
        "# NumPyro\na, b, 'total' in globals()",
        "a, b",
        "b = 5",
        "# Pyro\ntotal()",
    ]
    notebook = nbformat.new_notebook(cells=[nbformat.new_code_cell(cell) for cell in cells])
    client.NotebookClient(notebook, kernel_name="python3").execute()
    said = [out.data["text/plain"] for cell in notebook.cells for out in cell.outputs]
    assert said == ["14", "(1, 4, False)", "(1, 2)", "16"]


def test_code_of_the_pages_is_run():
    """Cells are run when the site is built; a plain block of Python would never be."""
    pages = [p for p in DOCS.rglob("*.md") if "_build" not in p.parts]
    plain = [p.name for p in pages if "```python" in p.read_text()]
    assert len(pages) > 15
    assert not plain, "make these blocks {code-cell} ipython3, and their page a MyST notebook"
