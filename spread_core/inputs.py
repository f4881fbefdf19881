# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Which arrays and containers from users are converted, and which are refused as data."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from spread_core.arguments import argument_name
from spread_core.messages import inputs

_NUMBERS = "biufc"
# What computing with something else than an array ends in.
_PLAIN_ERRORS = (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError)
_LIBRARIES = ("builtins", "numpy", "pandas", "torch", "jax")


class MisplacedError(ValueError):
    """A site observes something that is not an array."""


def is_foreign(value: Any, library: str, array_type: str) -> bool:
    """
    Whether ``value`` is an array of a library that need not be installed.

    :param value: anything.
    :param library: ``"torch"`` or ``"jax"``, which is not imported by asking.
    :param array_type: name of the class of its arrays.
    """
    module = sys.modules.get(library)
    return module is not None and isinstance(value, getattr(module, array_type))


def is_plain_numeric(value: Any) -> bool:
    """
    Whether ``value`` is a NumPy array that is nothing but its numbers.

    Not those of objects, strings or records; nor masked ones and other subclasses, which mean more
    than their numbers.
    """
    if type(value) is not np.ndarray and type(value) is not np.memmap:
        return False
    # Types that NumPy has not itself, such as bfloat16, come with JAX.
    return value.dtype.kind in _NUMBERS or value.dtype.type.__module__ == "ml_dtypes"


def converted(tree: Any, convert: Callable[[Any], Any]) -> Any:
    """
    ``tree`` with every array in it converted, in dicts, lists and tuples too; the original stays.

    :param tree: arguments of a model.
    :param convert: from a leaf to what takes its place, itself if nothing does.
    :return: the very object, if nothing in it was converted.
    """
    if type(tree) is dict:
        parts = {key: converted(value, convert) for key, value in tree.items()}
        return parts if any(parts[key] is not tree[key] for key in tree) else tree
    if type(tree) is list or isinstance(tree, tuple):
        items = [converted(value, convert) for value in tree]
        if all(new is old for new, old in zip(items, tree, strict=True)):
            return tree
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return convert(tree)


def is_misplaced(value: Any) -> bool:
    """Whether an observed value is of a kind that no distribution takes for numbers."""
    if isinstance(value, np.ndarray):
        return not is_plain_numeric(value)
    is_pandas = type(value).__module__.split(".")[0] == "pandas"
    return is_pandas or isinstance(value, list | tuple | dict | str)


def taking_arrays(
    fn: Callable[..., Any],
    convert: Callable[[Any], Any],
    observed: Callable[[], AbstractContextManager[Any]],
    wanted: str,
) -> Callable[..., Any]:
    """
    A function of a model and its arguments that converts them first, and says what it cannot.

    :param fn: with an argument ``model``, and ``*args`` for those of the model.
    :param convert: from an argument of the model to what takes its place.
    :param observed: makes the context in which what a model observes is converted.
    :param wanted: what an array is called.
    """
    parameters = list(inspect.signature(fn).parameters)
    model_at, args_at = parameters.index("model"), parameters.index("args")

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = converted(args, convert), converted(kwargs, convert)
        try:
            with observed():
                return fn(*args, **kwargs)
        except MisplacedError as error:  # Pyro adds the shapes of all sites
            raise ValueError(str(error).partition("\n")[0]) from error
        except _PLAIN_ERRORS as error:
            first = next(iter((*args[args_at:], *kwargs.values())), None)
            foreign = type(error).__module__.split(".")[0] in _LIBRARIES
            # Errors that name a site are our own, or the parent's, and say it better.
            said = any(word in str(error) for word in ("site '", "model argument '"))
            if not foreign or said or not is_misplaced(first):
                raise
            key = 0 if len(args) > args_at else next(iter(kwargs))
            model = args[model_at] if model_at < len(args) else kwargs["model"]
            text = inputs.computed_with(argument_name(key, model), first, wanted, error)
            plain = next(kind for kind in _PLAIN_ERRORS if isinstance(error, kind))
            raise plain(text) from error

    return wrapped
