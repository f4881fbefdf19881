# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The results that the documentation's page of the zoo includes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from studies.zoo import messages
from studies.zoo.rows import ROWS

SAMPLES_FILE = "samples.png"
SUMMARY_FILE = "summary.png"
#: Stands for a run that has failed, or was not made.
MISSING = "missing"
_COMMENT = "<!-- Written by examples/zoo.py --report --docs docs: do not edit. -->"
_LATER = "Added after the pictures were made: "


def docs_file(dataset: str) -> str:
    """
    The file that the page includes, which is not a page of its own.

    :param dataset: name of the data set.
    """
    return f"zoo_results{_suffix(dataset)}.inc"


def write_docs(
    text: str, output: Path, folders: Mapping[str, Path], docs: Path, dataset: str
) -> None:
    """
    Write the results of a run: all of them, or, if it had not all rows, those it had.

    Other rows stay as the page has them, and so do the pictures then.

    :param text: what the run says, and its table.
    :param output: the folder of its summary.
    :param folders: of each backend, the folder of its samples.
    :param docs: the documentation's folder.
    :param dataset: name of the data set.
    :raises SystemExit: if the page has results of other data or seeds.
    """
    path, images = docs / docs_file(dataset), docs / "images"
    later: list[str] = []
    if path.is_file() and any(f"| {row.title} |" not in text for row in ROWS.values()):
        old = path.read_text()
        said, table = text.split("\n\n")
        if said not in old.split("\n\n"):
            raise SystemExit(messages.other_page(path))
        later = _later(table, old)
        text = f"{said}\n\n{merged(table, old)}"
        pictures = [part for part in old.split("\n\n") if part.startswith("![")]
        pictures[-1] = pictures[-1].strip()
    else:
        images.mkdir(parents=True, exist_ok=True)
        name = f"zoo_summary{_suffix(dataset)}.png"
        shutil.copyfile(output / SUMMARY_FILE, images / name)
        pictures = [f"![Fréchet distance and log-likelihood of all systems](images/{name})"]
        for backend, folder in folders.items():
            name = f"zoo_samples_{backend}{_suffix(dataset)}.png"
            shutil.copyfile(folder / SAMPLES_FILE, images / name)
            pictures.append(f"![Samples of all systems, {backend}](images/{name})")
    told = [f"{_LATER}{'; '.join(later)}."] if later else []
    path.write_text("\n\n".join([_COMMENT, text, *told, *pictures]) + "\n")


def merged(new: str, old: str) -> str:
    """
    A table with the lines of another one whose runs it does not have, in the order of the rows.

    :param new: the table.
    :param old: text in which the other stands.
    """
    head, lines = new.splitlines()[:2], _lines(new)
    made = {key: line for key, line in lines.items() if f"| {MISSING} | {MISSING} |" not in line}
    lines |= _lines(old) | made
    order = {row.title: place for place, row in enumerate(ROWS.values())}
    rows = [lines[key] for key in sorted(lines, key=lambda key: order[key[0]])]
    return "\n".join([*head, *rows, new.splitlines()[-1]])


def _later(new: str, old: str) -> list[str]:
    """Titles of the rows that the pictures of the page have not."""
    found = re.search(rf"^{_LATER}(.*)\.$", old, re.MULTILINE)
    known = set(found[1].split("; ")) if found else set()
    known |= {title for title, _ in _lines(new)} - {title for title, _ in _lines(old)}
    return [row.title for row in ROWS.values() if row.title in known]


def _lines(text: str) -> dict[tuple[str, str], str]:
    """Lines of a table by title and backend."""
    titles = {row.title for row in ROWS.values()}
    cells = ((line, [cell.strip() for cell in line.split("|")]) for line in text.splitlines())
    return {(c[1], c[2]): line for line, c in cells if len(c) > 3 and c[1] in titles}


def _suffix(dataset: str) -> str:
    return "" if dataset == "digits" else f"_{dataset.replace('-', '_')}"
