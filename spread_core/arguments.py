# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Find which argument of a model holds the data of which site; plain Python for both backends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from spread_core import paths
from spread_core.paths import Part, Where
from spread_core.patterns import is_pattern, key_of, matches
from spread_core.remembered import Remembered

#: The position or keyword of an argument; a tuple goes on inside it.
Key = int | str | tuple[Part, ...]

# Reading a signature costs a tenth of a millisecond, too much for every step of a small model.
_known_names: Remembered[list[str]] = Remembered()


def accepts(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether a function can be called with these arguments."""
    try:
        inspect.signature(fn).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


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


def check_data_sites(data: Mapping[str, Where], sites: Collection[str]) -> None:
    """
    Refuse a ``data`` mapping with sites that have no kernel.

    :raises ValueError: naming them.
    """
    unknown = {site for site in data if not any(matches(key, site) for key in sites)}
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
    data: Mapping[str, Where] | None = None,
) -> dict[str, Key]:
    """
    For every site, the position or keyword of the argument that carries its data.

    Looked for in this order: the argument that ``data`` names, the argument of the site's own
    name, the first argument. Sites may share an argument, as the steps of a time series do, if they
    share the kernel too: one draw of the noise then serves them all. A pattern stands for sites
    that are not known yet: it is located for all of them, and for those whose names ``data`` or the
    arguments tell, by themselves.

    :param fn: the model.
    :param sites: names of the spread sites, or patterns, as the keys of a dict to their kernels or
        by themselves.
    :param args: positional arguments of this call.
    :param kwargs: keyword arguments of this call.
    :param data: dict from site to argument name, or to a way into an argument: ``"batch.image"`` or
        ``("batch", "image")`` for what is ``batch["image"]`` or ``batch.image``.
    :return: dict from site to a position in ``args`` or a key of ``kwargs``, or to a tuple that
        begins with one.
    :raises ValueError: if an argument cannot be found or would serve two sites.
    """
    data = {} if data is None else data
    check_data_sites(data, sites)
    names = positional_names(fn)
    given = [names[i] if i < len(names) else f"*args[{i}]" for i in range(len(args))]
    available = [*given, *kwargs]
    located: dict[str, Key] = {}
    for site in _with_own_names(sites, data, available):
        where = paths.parts_of(data.get(site, site), available)
        if where[0] in kwargs:
            located[site] = where if len(where) > 1 else where[0]
        elif where[0] in given:
            place = given.index(str(where[0]))
            located[site] = (place, *where[1:]) if len(where) > 1 else place
        elif isinstance(where[0], int) and 0 <= where[0] < len(args):
            located[site] = where if len(where) > 1 else where[0]
        elif site in data:
            raise ValueError(
                f"site '{site}': data= says that the model argument '{where[0]}' carries it, but "
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
        _check_way(site, located[site], args, kwargs)
    _refuse_shared(located, sites, available)
    return located


def _with_own_names(
    sites: Mapping[str, object] | Collection[str],
    data: Mapping[str, Where],
    available: Collection[str],
) -> list[str]:
    """The sites, and instead of patterns what is known by name; a pattern for the rest."""
    found: list[str] = []
    for site in sites:
        if not is_pattern(site):
            found.append(site)
            continue
        others = [name for name in data if name != site and name not in sites]
        if site not in data:
            others += [name for name in available if name not in sites and name not in others]
        own = [name for name in others if matches(site, name)]
        found += own if own and site not in data else [*own, site]
    return list(dict.fromkeys(found))


def _check_way(site: str, key: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if not isinstance(key, tuple):
        return
    here = get_argument(key[0], args, kwargs)
    for part in key[1:]:
        try:
            here = paths.child(here, part)
        except LookupError:
            raise ValueError(
                f"site '{site}': data= says that '{part}' inside of a model argument carries it, "
                f"but what it is looked for in has {paths.described(here)}."
            ) from None


def _refuse_shared(
    located: Mapping[str, Key],
    sites: Mapping[str, object] | Collection[str],
    available: list[str],
) -> None:
    by_key: Any = sites if isinstance(sites, Mapping) else {site: site for site in sites}
    owner: dict[Key, str] = {}
    for site, key in located.items():
        kernel = by_key[key_of(by_key, site)]
        if key in owner and kernel is not by_key[key_of(by_key, owner[key])]:
            top, *way = key if isinstance(key, tuple) else (key,)
            argument = paths.spelled([available[top] if isinstance(top, int) else top, *way])
            raise ValueError(
                f"sites '{owner[key]}' and '{site}' would both take their data from the model "
                f"argument '{argument}'. Say which argument carries which site: "
                f"data={{'{owner[key]}': ..., '{site}': ...}}; the arguments are {available}. "
                "Sites that do observe parts of one argument must have one and the same kernel "
                "object."
            )
        owner.setdefault(key, site)


def get_argument(key: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The argument at ``key``, a position or a keyword, or what is inside it."""
    top, *way = key if isinstance(key, tuple) else (key,)
    value = args[top] if isinstance(top, int) else kwargs[top]
    for part in way:
        value = paths.child(value, part)
    return value


def argument_name(key: Key, fn: Callable[..., Any]) -> str:
    """Name of the argument at ``key`` in a message."""
    top, *way = key if isinstance(key, tuple) else (key,)
    if isinstance(top, int):
        names = positional_names(fn)
        top = names[top] if top < len(names) else f"*args[{top}]"
    return paths.spelled([top, *way])


def replace_arguments(
    values: Mapping[Key, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copies of ``args`` and ``kwargs`` with ``values`` put at their keys; the originals stay."""
    new_args, new_kwargs = list(args), dict(kwargs)
    for key, value in values.items():
        top, *way = key if isinstance(key, tuple) else (key,)
        if isinstance(top, int):
            new_args[top] = _replaced(new_args[top], way, value)
        else:
            new_kwargs[top] = _replaced(new_kwargs[top], way, value)
    return tuple(new_args), new_kwargs


def _replaced(argument: Any, way: list[Part], value: Any) -> Any:
    if not way:
        return value
    inner = _replaced(paths.child(argument, way[0]), way[1:], value)
    return paths.with_child(argument, way[0], inner)
