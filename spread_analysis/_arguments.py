# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Which argument of a model carries the data of which site; plain Python for both backends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from spread_analysis._remembered import Remembered

Key = int | str

# Reading a signature costs a tenth of a millisecond, too much for every step of a small model.
_known_names: Remembered[list[str]] = Remembered()


def positional_names(fn: Callable[..., Any]) -> list[str]:
    """
    Names of the arguments that ``fn`` accepts by position; empty when they cannot be known.

    :param fn: a model: function, handler around one, partial, or module with ``forward``.
    """
    names = _known_names.get(fn)
    if names is None:
        names = _read_positional_names(fn)
        _known_names.keep(fn, names)
    return names


def _read_positional_names(fn: Callable[..., Any]) -> list[str]:
    # The signature of a torch module's ``__call__`` is (*args, **kwargs): its own is forward's.
    target = getattr(fn, "forward", fn)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in by_position]


def check_data_sites(data: Mapping[str, str], sites: Collection[str]) -> None:
    """
    Refuse a ``data`` mapping with sites that have no kernel.

    :raises ValueError: naming them.
    """
    unknown = data.keys() - set(sites)
    if unknown:
        raise ValueError(
            f"data= names the site(s) {sorted(unknown)}, for which noise has no kernel; it has "
            f"{sorted(sites)}."
        )


def locate_data(
    fn: Callable[..., Any],
    sites: Mapping[str, object] | Collection[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    data: Mapping[str, str] | None = None,
) -> dict[str, Key]:
    """
    For every site, the position or keyword of the argument that carries its data.

    Looked for in this order: the argument that ``data`` names, the argument of the site's own
    name, the first argument. Sites may share an argument, as the steps of a time series do, if they
    share the kernel too: one draw of the noise then serves them all.

    :param fn: the model.
    :param sites: names of the spread sites, as the keys of a dict to their kernels or by
        themselves.
    :param args: positional arguments of this call.
    :param kwargs: keyword arguments of this call.
    :param data: dict from site to argument name.
    :return: dict from site to a position in ``args`` or a key of ``kwargs``.
    :raises ValueError: if an argument cannot be found or would serve two sites.
    """
    data = {} if data is None else data
    check_data_sites(data, sites)
    names = positional_names(fn)
    given = [names[i] if i < len(names) else f"*args[{i}]" for i in range(len(args))]
    available = [*given, *kwargs]
    located: dict[str, Key] = {}
    for site in sites:
        wanted = data.get(site, site)
        if wanted in kwargs:
            located[site] = wanted
        elif wanted in given:
            located[site] = given.index(wanted)
        elif site in data:
            raise ValueError(
                f"site '{site}': data= says that the model argument '{wanted}' carries it, but "
                f"this call has no such argument; it has {available}."
            )
        elif args:
            located[site] = 0
        elif kwargs:
            located[site] = next((name for name in names if name in kwargs), next(iter(kwargs)))
        else:
            raise ValueError(
                f"site '{site}': the model was called without arguments, so there is no data to "
                "spread. Pass the data as an argument of the model instead of capturing it, or "
                f"score a fixed data set with spread(model, noise={{'{site}': ...}}) and a stock "
                "ELBO."
            )
    _refuse_shared(located, sites, available)
    return located


def _refuse_shared(
    located: Mapping[str, Key],
    sites: Mapping[str, object] | Collection[str],
    available: list[str],
) -> None:
    kernels = sites if isinstance(sites, Mapping) else {site: site for site in sites}
    owner: dict[Key, str] = {}
    for site, key in located.items():
        if key in owner and kernels[site] is not kernels[owner[key]]:
            argument = available[key] if isinstance(key, int) else key
            raise ValueError(
                f"sites '{owner[key]}' and '{site}' would both take their data from the model "
                f"argument '{argument}'. Say which argument carries which site: "
                f"data={{'{owner[key]}': ..., '{site}': ...}}; the arguments are {available}. "
                "Sites that do observe parts of one argument must have one and the same kernel "
                "object."
            )
        owner.setdefault(key, site)


def get_argument(key: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The argument at ``key``, a position or a keyword."""
    return args[key] if isinstance(key, int) else kwargs[key]


def argument_name(key: Key, fn: Callable[..., Any]) -> str:
    """What to call the argument at ``key`` in a message."""
    if isinstance(key, str):
        return key
    names = positional_names(fn)
    return names[key] if key < len(names) else f"*args[{key}]"


def replace_arguments(
    values: Mapping[Key, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copies of ``args`` and ``kwargs`` with ``values`` put at their keys; the originals stay."""
    new_args = tuple(values.get(i, value) for i, value in enumerate(args))
    new_kwargs = {name: values.get(name, value) for name, value in kwargs.items()}
    return new_args, new_kwargs
