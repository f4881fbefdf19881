# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Programs of the parents' own examples, and the data they were written for: what needs no backend.

The tables are small and published:

- eight schools: Rubin (1981), `Estimation in parallel randomized experiments`, table 1;
- baseball: hits in the first 45 times at bat of 18 players in 1970; Efron and Morris (1975), `Data
  analysis using Stein's estimator and its generalizations`, table 1;
- rats: weights in grams of 30 young rats at five ages in days; Gelfand et al. (1990),
  `Illustration of Bayesian inference in normal data models using Gibbs sampling`, table 3;
- hares and lynxes: pelts in thousands, collected by the Hudson's Bay Company from 1900 to 1920;
  Howard (2009), `Modeling basics`, after Elton and Nicholson (1942).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Draws = Mapping[str, Any]

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)

HITS = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7], np.float32)
AT_BATS = np.full(18, 45)


def _numbers(text: str) -> np.ndarray:
    return np.array([float(word) for word in text.split()], np.float32)


DAYS = _numbers("8 15 22 29 36")
WEIGHTS = _numbers(
    """151 199 246 283 320  145 199 249 293 354  147 214 263 312 328  155 200 237 272 297
    135 188 230 280 323  159 210 252 298 331  141 189 231 275 305  159 201 248 297 338
    177 236 285 350 376  134 182 220 260 296  160 208 261 313 352  143 188 220 273 314
    154 200 244 289 325  171 221 270 326 358  163 216 242 281 312  160 207 248 288 324
    142 187 234 280 316  156 203 243 283 317  157 212 259 307 336  152 203 246 286 321
    154 205 253 298 334  139 190 225 267 302  146 191 229 272 302  157 211 250 285 323
    132 185 237 286 331  160 207 257 303 345  169 216 261 295 333  157 205 248 289 316
    137 180 219 258 291  153 200 244 286 324"""
).reshape(30, 5)

HARES = _numbers(
    "30.0 47.2 70.2 77.4 36.3 20.6 18.1 21.4 22.0 25.4 27.1 40.3 57.0 76.6 52.3 19.5 11.2 7.6 14.6 "
    "16.2 24.7"
)
LYNXES = _numbers(
    "4.0 6.1 9.8 35.2 59.4 41.7 19.0 13.0 8.3 9.1 7.4 8.0 12.3 19.5 45.7 51.1 29.7 15.8 9.7 10.1 "
    "8.6"
)
#: The regression that looks its coefficients up by index is given the first of the rats.
NUM_INDEXED = 8


@dataclass(frozen=True)
class Program:
    """
    A program and its data.

    :param model: what the modules of both backends call it.
    :param args: its arguments before the data.
    :param observed: the observed site.
    :param data: the real data.
    :param positive: latents whose moments are taken of their logarithms: under a half-Cauchy prior
        they may have none themselves.
    :param sites: latents in plates, that NUTS also tries without their location and scale.
    :param source: the program, another one, on which NUTS is run.
    :param back: latents of this one from those of ``source``.
    :param dense: whether NUTS adapts a dense mass matrix.
    :param num_sets: number of simulated data sets, at most: where NUTS takes minutes for each.
    """

    model: str
    args: tuple[Any, ...]
    observed: str
    data: np.ndarray
    positive: tuple[str, ...]
    sites: tuple[str, ...] = ()
    source: str | None = None
    back: Callable[[Draws], dict[str, Any]] = dict
    dense: bool = False
    num_sets: int = 1000


def _standardised_effects(draws: Draws) -> dict[str, Any]:
    base = (draws["theta"] - draws["mu"][:, None]) / draws["tau"][:, None]
    return {"mu": draws["mu"], "tau": draws["tau"], "theta_base": base}


_SPREADS = ("sigma_alpha", "sigma_beta", "sigma")
PROGRAMS = {
    "eight_schools": Program(
        "eight_schools", (8, ERRORS), "obs", EFFECTS, ("tau",), sites=("theta",)
    ),
    "eight_schools_noncentred": Program(
        "eight_schools_noncentred",
        (8, ERRORS),
        "obs",
        EFFECTS,
        ("tau",),
        source="eight_schools",
        back=_standardised_effects,
    ),
    "baseball": Program("baseball", (AT_BATS,), "obs", HITS, ("scale",), sites=("alpha",)),
    "regression": Program(
        "regression", (30, DAYS), "obs", WEIGHTS.T.copy(), _SPREADS, sites=("alpha", "beta")
    ),
    "regression_indexed": Program(
        "regression_indexed",
        (np.repeat(np.arange(NUM_INDEXED), 5), np.tile(DAYS, NUM_INDEXED)),
        "obs",
        WEIGHTS[:NUM_INDEXED].ravel(),
        _SPREADS,
        sites=("alpha", "beta"),
    ),
    "predator_prey": Program(
        "predator_prey",
        (21,),
        "y",
        np.stack([HARES, LYNXES], 1),
        ("z_init", "theta", "sigma"),
        dense=True,
        num_sets=4,
    ),
}


def numbers(program: Program, draws: Draws) -> dict[str, np.ndarray]:
    """
    Draws of every single number of the latents, of positive ones the logarithms.

    :param program: whose.
    :param draws: by site, of shape (num,) + the site's.
    """
    found = {}
    for site, values in draws.items():
        rows = np.asarray(values, float).reshape(len(values), -1)
        if site in program.positive:
            rows = np.log(rows)
        for place, column in enumerate(rows.T):
            found[f"{site}[{place}]" if rows.shape[1] > 1 else site] = column
    return found


def moments(program: Program, draws: Draws) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of every number."""
    columns = numbers(program, draws).items()
    return {name: (float(column.mean()), float(column.std())) for name, column in columns}
