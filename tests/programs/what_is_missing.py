# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
What a new kernel, divergence or loss still lacks: ``make check-new`` prints it.

All classes that the packages define are looked at, exported or not. A class that is written in one
backend only, or that is in no list of the tests and on no page, is named.
"""

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path

import flax.linen
import jax.numpy as jnp
import torch
from every import DIVERGENCES, KERNELS, LOSSES, MMD_KERNELS

from spread_core.loss_words import Described

ROOT = Path(__file__).parents[2]
ARRAYS = {"pyro_spread": torch.as_tensor, "numpyro_spread": jnp.asarray}
NETS = {"pyro_spread": lambda: torch.nn.Linear(1, 1), "numpyro_spread": lambda: flax.linen.Dense(1)}
# Kind to the module of its base class, that class, the list in every.py and the page.
KINDS = {
    "kernel": ("{package}.noise.base", "SpreadNoise", "KERNELS", "docs/kernels.md"),
    "MMD kernel": ("spread_core.math.kernels", "Kernel", "MMD_KERNELS", "docs/choose.md"),
    "divergence": (
        "spread_core.math.f_divergence",
        "Divergence",
        "DIVERGENCES",
        "docs/divergences.md",
    ),
    "loss": ("{package}.infer._registration", "Loss", "LOSSES", "docs/choose.md"),
}
# What a method of another class makes is tested and documented with that class.
MADE_BY_OTHERS = {"ConvolvedGaussianKernel"}


def defined(kind, package):
    """
    Name to class of the concrete, public classes of a kind that the project defines.

    A class from which another one derives is taken for a base.
    """
    module = importlib.import_module(package)
    for info in pkgutil.walk_packages(module.__path__, f"{package}."):
        importlib.import_module(info.name)
    home, base, *_ = KINDS[kind]
    found, left = {}, [getattr(importlib.import_module(home.format(package=package)), base)]
    while left:
        cls = left.pop()
        derived = [c for c in cls.__subclasses__() if _is_of(c, package)]
        left += derived
        public = _is_of(cls, package) and not cls.__name__.startswith("_")
        made = cls.__name__ in MADE_BY_OTHERS
        if public and not made and not derived and not inspect.isabstract(cls):
            found[cls.__name__] = cls
    return found


def listed(kind, package):
    """Names of the classes in the list of the tests."""
    p = importlib.import_module(package)
    if kind == "kernel":
        made = [kernel.build(p, ARRAYS[package]) for kernel in KERNELS.values()]
    elif kind == "MMD kernel":
        made = [make(p) for make, _ in MMD_KERNELS.values()]
    elif kind == "divergence":
        made = [make(p) for make, *_ in DIVERGENCES.values()]
    else:
        made = [
            entry.make(p, lambda *sites: p.concat_sites(NETS[package](), *sites))
            for entry in LOSSES.values()
        ]
    return {type(each).__name__ for each in made}


def missing(pages=None):
    """
    What is missing, one sentence each.

    :param pages: text by path of a page; None reads them.
    """
    found = []
    for kind, (*_, test_list, page) in KINDS.items():
        text = (ROOT / page).read_text() if pages is None else pages[page]
        classes = {package: defined(kind, package) for package in ARRAYS}
        for name in sorted({name for each in classes.values() for name in each}):
            for package, here in classes.items():
                if name not in here:
                    found.append(f"{package} has no {kind} {name}: mirror it.")
                    continue
                if name not in importlib.import_module(package).__all__:
                    found.append(f"{package}.{name} is not exported: add it to __all__.")
                if name not in listed(kind, package):
                    found.append(
                        f"{name} of {package} is not in {test_list} of tests/programs/every.py."
                    )
                if not (here[name].__doc__ or "").strip():
                    found.append(f"{package}.{name} has no docstring.")
                if kind == "loss" and here[name].describe is Described.describe:
                    found.append(
                        f"{package}.{name} does not say what it reports: write describe()."
                    )
            # A table's row: an example on the page may have the same name.
            if not any(name in line for line in text.splitlines() if line.startswith("|")):
                found.append(f"{name} is in no table of {page}.")
    return found


def _is_of(cls, package):
    """Whether a module of the project holds the class; what a doctest defines, none holds."""
    if cls.__module__.partition(".")[0] not in (package, "spread_core"):
        return False
    return getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls


if __name__ == "__main__":
    sentences = missing()
    print("\n".join(sentences) or "Nothing is missing.")
    sys.exit(bool(sentences))
