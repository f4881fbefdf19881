# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Lists of the public names, from which autosummary makes a page for each.

They are written out of ``__all__`` at every build: a name added there has a page, with no list to
be kept by hand. A name is grouped by the module that defines it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import types
from pathlib import Path
from typing import Any

from sphinx.pycode import ModuleAnalyzer

BACKENDS = {"pyro_spread": "Pyro", "numpyro_spread": "NumPyro"}
OWN = (*BACKENDS, "spread_analysis")
# Private: what it defines is documented where it is exported.
CORE = "spread_core"
# What both backends export: one page has it in full, since Sphinx takes an object once.
SHARED = f"{CORE}.math"
HOMES = {"pyro_spread": SHARED, "spread_analysis": CORE}

# One list each; the names of submodules that their package does not export come with the package.
LISTS = (*OWN, "spread_analysis.reference")

# In the order of the page. What no line names comes last, under the first line of its module.
GROUPS = {
    "infer": "Losses",
    "handlers": "The handler",
    "noise": "Noise kernels",
    "divergences": "Divergences",
    "f_divergence": "Divergences",
    "kernels": "Kernels of the two-sample losses",
    "distributions": "Distributions",
    "autoguide": "Guides",
    "optim": "Two players",
    "ratio": "Ratios and critics",
    "reporting": "Watching a run, and reporting it",
    "history": "Watching a run, and reporting it",
    "report": "Watching a run, and reporting it",
    "checkpoint": "Checkpoints",
    "checkpoint_file": "Checkpoints",
    "guard": "A guard against NaN and inf",
    "nonfinite": "A guard against NaN and inf",
    "evaluation": "Evaluation",
    "critic": "Judging a critic",
    "monitors": "Judging a critic",
    "metrics": "Metrics of samples",
    "log_evidence": "Log evidence",
    "calibration": "Calibration",
    "posterior_check": "Calibration",
    "coverage": "Calibration",
    "classifier_test": "Calibration",
    "misspecification": "Calibration",
    "simulate": "Simulations",
    "simulations": "Simulations",
    "arviz_export": "ArviZ",
    "plots": "Plots",
    "datasets": "Data sets",
    "features": "Features",
    "characteristic": "Characteristic functions",
    "deltas": "Two deltas",
    "gaussian": "Gaussians",
    "linear": "Linear decoders",
    "channel": "Channels",
    "points": "Points",
    "ica": "Independent components",
    "posteriors": "Posteriors",
}


def public_names(package: str) -> dict[str, Any]:
    """
    Full name to object of everything that is public in ``package``.

    :param package: one of :data:`LISTS`.
    """
    module = importlib.import_module(package)
    found = {f"{package}.{name}": getattr(module, name) for name in module.__all__}
    if package in BACKENDS:
        known = {id(obj) for obj in found.values()}
        for info in pkgutil.iter_modules(module.__path__, f"{package}."):
            if info.name.rpartition(".")[2].startswith("_"):
                continue
            part = importlib.import_module(info.name)
            for name in getattr(part, "__all__", ()):
                obj = getattr(part, name)
                if id(obj) not in known:
                    found[f"{info.name}.{name}"] = obj
    return found


def _home(full: str, obj: Any, package: str) -> str:
    """The last part of the module, below the package, that the object is grouped by."""
    module = getattr(obj, "__module__", None)
    if not isinstance(module, str) or not module.startswith((*OWN, CORE)):  # a constant
        owner = importlib.import_module(package)
        name = full.rpartition(".")[2]
        for info in pkgutil.iter_modules(owner.__path__):
            part = importlib.import_module(f"{package}.{info.name}")
            if not info.name.startswith("_") and getattr(part, name, None) is obj:
                return info.name
        return package
    if module.startswith(package + "."):
        return module[len(package) + 1 :].split(".")[0]
    return module.rpartition(".")[2]


def _title(home: str, obj: Any) -> str:
    for name in (home, (getattr(obj, "__module__", None) or "").rpartition(".")[2]):
        if name in GROUPS:
            return GROUPS[name]
    doc = inspect.getdoc(importlib.import_module(obj.__module__)) or home
    return doc.split("\n")[0].split(":")[0].rstrip(".")


def _page(package: str) -> str:
    names = public_names(package)
    groups: dict[str, list[str]] = {title: [] for title in GROUPS.values()}
    modules = []
    for full, obj in names.items():
        if isinstance(obj, types.ModuleType):
            modules.append(full)
        else:
            groups.setdefault(_title(_home(full, obj, package), obj), []).append(full)
    lines = [package, "=" * len(package), "", f".. automodule:: {package}", "   :no-members:", ""]
    for title, members in groups.items():
        if not members:
            continue
        lines += [title, "-" * len(title), "", f".. currentmodule:: {package}", ""]
        lines += [".. autosummary::", f"   :toctree: {package}", "   :nosignatures:", ""]
        names_here = sorted((m.removeprefix(f"{package}.") for m in members), key=str.lower)
        lines += [f"   {name}" for name in names_here]
        lines.append("")
    for full in modules:
        lines += ["Submodules", "----------", "", ".. toctree::", "   :maxdepth: 1", ""]
        lines += [f"   {full}", ""]
    return "\n".join(lines)


def _words(full: str, obj: Any, package: str) -> str:
    """What is said about an object whose page autodoc cannot make."""
    if isinstance(obj, type):  # documented by another package, under the name it has there
        owner = obj.__module__.partition(".")[0]
        if owner == CORE:
            owner = "pyro_spread" if obj.__module__.startswith(SHARED) else "spread_analysis"
        home = f"{owner}.{obj.__name__}"
        return f"The same class as :py:obj:`{home}`.\n\n{inspect.getdoc(obj)}"
    module = f"{package}.{_home(full, obj, package)}"
    docs = ModuleAnalyzer.for_module(module).find_attr_docs()
    return "\n".join(docs.get(("", full.rpartition(".")[2]), []))


def context() -> dict[str, Any]:
    """
    What the templates need to know.

    :return: ``twins``, full name to full name of the same in the other backend; ``words``, full
        name to text of what autodoc would not find or would describe twice.
    """
    words, everything = {}, set()
    for package in LISTS:
        for full, obj in public_names(package).items():
            everything.add(full)
            module = getattr(obj, "__module__", None)
            home = package.partition(".")[0]
            own = (home, HOMES.get(home, home))
            foreign = isinstance(obj, type) and not module.startswith(own)
            constant = not isinstance(module, str) and not isinstance(obj, types.ModuleType)
            if foreign or constant:
                words[full] = _words(full, obj, package)
    twins = {}
    for name in sorted(everything):  # a config that is the same at every build
        package, _, rest = name.partition(".")
        for other in set(BACKENDS) - {package} if package in BACKENDS else ():
            if f"{other}.{rest}" in everything:
                twins[name] = f"{other}.{rest}"
    return {"twins": twins, "words": words}


def write(folder: Path) -> None:
    """
    Write one list of names for each package, and touch none that has not changed.

    :param folder: where the lists go.
    """
    for package in LISTS:
        path, text = folder / f"{package}.rst", _page(package)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def skip_foreign(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Whether a member of a class is left out: yes, if torch, Pyro, JAX or NumPyro define it."""
    inner = obj.fget if isinstance(obj, property) else getattr(obj, "__func__", obj)
    module = getattr(inner, "__module__", None) or ""
    if what == "class" and callable(inner) and not module.startswith((*OWN, CORE)):
        return True
    return None


def mend_source_links(app: Any, pagename: str, template: str, context: Any, doctree: Any) -> None:
    """
    Let the [docs] links of source pages end at the anchors that exist.

    viewcode knows one path for each module, but names of a module are documented under several: a
    package exports some of them, its submodule all.
    """
    if pagename.startswith("_modules/") and "body" in context:
        context["body"] = re.sub(
            r"(api/[\w.]+/([\w.]+)\.(\w+)\.html#)[\w.]*?\b\3(?=[.\"])",
            lambda m: f"{m[1]}{m[2]}.{m[3]}",
            context["body"],
        )
