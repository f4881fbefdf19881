# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The results of ``sbi_programs.py`` as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
BACKENDS = {"numpyro": "NumPyro", "pyro": "Pyro"}
#: Largest difference of means, in posterior standard deviations, and of standard deviations.
AIM, REFINED_AIM = (0.15, 0.15), (0.05, 0.05)
#: Numbers whose moments NUTS itself knows no better than this are left out, and counted.
UNKNOWN = 0.03


def tables(rows: Iterable[Row]) -> str:
    """What NUTS was, and how near to it are draws and refined draws."""
    rows = list(rows)
    references: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row["kind"] == "reference":
            references.setdefault(row["program"], {})[row["set"]] = row
    units = {_unit(row): None for row in rows if row["kind"] == "end"}
    lines = []
    for unit in units:
        own = [row for row in rows if row["kind"] != "reference" and _unit(row) == unit]
        lines += _lines(own, references.get(unit[0], {}))
    header = ["program", "simulations", "draws", "data sets; numbers", "mean off by: median",
              "largest", "sd ratio", "within aim", "Pareto k", "SBC p", "CPU s"]  # fmt: skip
    text = (
        "Posterior means and standard deviations beside NUTS, over all latents of all data sets. "
        "Means are off in posterior standard deviations; positive latents are compared by their "
        f"logarithms. The aim is {AIM[0]:.2f} and 15 % for draws, {REFINED_AIM[0]:.2f} and 5 % for "
        "refined ones; in brackets the real data alone.\n\n"
    )
    return text + _markdown(header, lines) + "\n" + _of_nuts(references)


def compared(own: Iterable[Row], references: Mapping[int, Row], what: str) -> dict[int, np.ndarray]:
    """
    Differences of means in standard deviations, and ratios of these, by data set.

    :param own: rows with moments.
    :param references: rows of NUTS by data set.
    :param what: the key of the moments.
    :return: arrays of shape (numbers, 2).
    """
    found = {}
    for row in own:
        reference = references.get(row["set"])
        if reference is None or row.get(what) is None:
            continue
        pairs = []
        for name, (mean, sd) in reference["moments"].items():
            if reference["errors"][name] <= UNKNOWN and sd > 0:
                mine = row[what][name]
                pairs.append(((mine[0] - mean) / sd, mine[1] / sd))
        found[row["set"]] = np.array(pairs).reshape(-1, 2)
    return found


def _lines(own: Sequence[Row], references: Mapping[int, Row]) -> list[list[str]]:
    end = next(row for row in own if row["kind"] == "end")
    start = [end["program"], f"{end['num_simulations']:,}"]
    name = f"{BACKENDS[end['backend']]}, seed {end['seed']}"
    trained = [row for row in own if row["kind"] == "training"]
    if not trained:
        return [[*start, name, f"failed: {end['error']}", *["–"] * 7]]
    check = next((row for row in own if row["kind"] == "check"), None)
    draws = [row for row in own if row["kind"] == "draws"]
    chains = [row for row in own if row["kind"] == "nuts"]
    sbc = f"{check['p_values']['sbc']:.2g}" if check and check["p_values"] else "–"
    lines = [
        [*start, name, *_cells(compared(draws, references, "moments"), AIM), "–", sbc,
         f"{trained[0]['cpu']:.0f}"],
    ]  # fmt: skip
    shapes = [row["pareto_k"] for row in draws if row.get("pareto_k") is not None]
    k = f"{np.median(shapes):.2f}, at most {max(shapes):.2f}" if shapes else "–"
    refined = _cells(compared(draws, references, "refined"), REFINED_AIM)
    lines.append([*start, f"{name}, importance", *refined, k, "–", "–"])
    if chains:
        cells = _cells(compared(chains, references, "moments"), REFINED_AIM)
        lines.append([*start, f"{name}, NUTS", *cells, "–", "–", "–"])
    failed = [row["error"] for row in [*draws, *chains, check or {}, end] if row.get("error")]
    if failed:
        lines[-1][2] += f" ({len(failed)} failed: {failed[0]})"
    return lines


def _cells(found: Mapping[int, np.ndarray], aim: tuple[float, float]) -> list[str]:
    pairs = np.concatenate([*found.values(), np.zeros((0, 2))])
    if not len(pairs):
        return ["0"] + ["–"] * 4
    off, ratio = np.abs(pairs[:, 0]), pairs[:, 1]
    within = (off <= aim[0]) & (np.abs(ratio - 1) <= aim[1])
    real = found.get(0)
    largest, spread = f"{off.max():.3f}", f"{ratio.min():.2f} to {ratio.max():.2f}"
    if real is not None and len(real):
        largest += f" ({np.abs(real[:, 0]).max():.3f})"
        spread += f" ({real[:, 1].min():.2f} to {real[:, 1].max():.2f})"
    return [
        f"{len(found)}; {len(pairs)}",
        f"{np.median(off):.3f}",
        largest,
        spread,
        f"{100 * within.mean():.0f} %",
    ]


def _of_nuts(references: Mapping[str, Mapping[int, Row]]) -> str:
    header = ["program", "data sets", "non-centred in", "error of a mean: median", "largest",
              "numbers left out", "largest r-hat", "divergences", "CPU s"]  # fmt: skip
    lines = []
    for program, rows in references.items():
        errors = np.concatenate([list(row["errors"].values()) for row in rows.values()])
        lines.append(
            [
                program,
                str(len(rows)),
                str(sum(row["form"] == "non-centred" for row in rows.values())),
                f"{np.median(errors):.4f}",
                f"{errors.max():.3f}",
                f"{(errors > UNKNOWN).sum()} of {len(errors)}",
                f"{max(row['r_hat'] for row in rows.values()):.3f}",
                str(sum(row["divergences"] for row in rows.values())),
                f"{sum(row['cpu'] for row in rows.values()):.0f}",
            ]
        )
    text = (
        "NUTS: four chains. Where the error of a mean, in posterior standard deviations, is above "
        ".015, latents in plates are also tried without their location and scale, and the better "
        f"form counts; numbers with an error above {UNKNOWN} are left out.\n\n"
    )
    return text + _markdown(header, lines)


def _unit(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("program", "backend", "num_simulations", "seed"))


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
