# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Base class of every loss, and the guides that ``register`` returns."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer.elbo import ELBO

from numpyro_spread._inputs import takes_arrays
from numpyro_spread._typing import RngKey
from numpyro_spread.infer._invalid import tells_of_failures
from numpyro_spread.infer._moving import moved_on
from spread_core.loss_words import Described
from spread_core.monitors import Monitor
from spread_core.typing import Args, Guide, Kwargs, Model

Hook = Callable[[tuple[Any, ...], dict[str, Any]], None]


_METHODS = ("loss", "loss_with_mutable_state", "logits", "held_out_check")


class Loss(Described, ELBO):
    """Base class of every loss: converts tensors of torch among the arguments to arrays."""

    #: Where a loss adds noise to the data that the guide sees.
    _spreading: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _METHODS:
            if name in vars(cls):
                setattr(cls, name, takes_arrays(vars(cls)[name]))
        if "loss_with_mutable_state" in vars(cls):
            told = tells_of_failures(moved_on(vars(cls)["loss_with_mutable_state"]))
            cls.loss_with_mutable_state = told

    def look(
        self, rng_key: RngKey, params: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> tuple[float, dict[str, Any]]:
        """
        The reported value at fresh draws, and the logits of each critic; monitors do not see it.

        :return: the value, and logits by critic; the name of a single critic is empty.
        """
        quiet = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Monitor):
                setattr(quiet, name, copy.deepcopy(value))
                getattr(quiet, name).warned = True
        value = float(quiet.loss(rng_key, params, model, guide, *args, **kwargs))
        if getattr(self, "discriminator", None) is None:
            return value, {}
        logits = cast(Any, self).logits(rng_key, params, model, guide, *args, **kwargs)
        return value, logits if type(logits) is dict else {"": logits}

    def guide_as_trained(
        self, rng_key: RngKey, params: Any, model: Model, guide: Guide, args: Args, kwargs: Kwargs
    ) -> tuple[Any, Any, Any]:
        """
        The guide and its arguments as in training: with noise on the data where there is noise.

        :return: guide, positional arguments, keyword arguments.
        """
        if self._spreading is not None and self._spreading.noise:
            step = self._spreading.looked(params, model, args, kwargs, guide)
            handed, _ = step.hand(rng_key)
            guide, args, kwargs = step.tell(guide, handed), handed.args, handed.kwargs
        return guide, args, kwargs


class Registered:
    """
    A guide with something done before and after it; all else, such as ``median``, is its own.

    :param guide: the guide.
    :param before: called with the tuple of positional and the dict of keyword arguments.
    :param after: the same, after the guide.
    """

    def __init__(
        self, guide: Callable[..., Any], before: Hook | None = None, after: Hook | None = None
    ) -> None:
        functools.update_wrapper(self, guide, updated=())
        self._guide, self._before, self._after = guide, before, after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._guide, *args, **kwargs)

    @takes_arrays
    def _call(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # The guide instead of a model: for the names of its arguments, which are the same.
        if self._before is not None:
            self._before(args, kwargs)
        try:
            result = model(*args, **kwargs)
        except RuntimeError as error:  # by NumPyro's autoguides
            if "Cannot find valid initial parameters" not in str(error):
                raise
            raise RuntimeError(
                f"{type(self._guide).__name__} cannot find valid initial parameters: the model "
                "has no finite log density there. If it observes a Delta without noise, make "
                f"the guide from the spread model, {type(self._guide).__name__}(spread(model, "
                "noise)); else look for a value outside of a distribution's support."
            ) from error
        if self._after is not None:
            self._after(args, kwargs)
        return result

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_guide":  # pickle asks before there is a guide
            raise AttributeError(name)
        return getattr(self._guide, name)


def declare_params(site: str, init: Callable[[], Any]) -> None:
    """
    Declare params that ``init`` makes where nobody has substituted them.

    :param site: name of the param site.
    :param init: makes the initial pytree.
    """
    if numpyro.param(site) is None:
        params = init()
        # NumPyro takes what can be called, as equinox modules can, for an initialiser.
        numpyro.param(site, (lambda _: params) if callable(params) else params)


def example_of(draw: Callable[[jax.Array], Any], rng_key: jax.Array) -> Any:
    """
    The result of ``draw`` with zeros for arrays: it is only traced, nothing is computed.

    :param draw: from a random key to a pytree, whose other leaves stay as they are.
    :param rng_key: random key.
    """
    kept: list[Any] = []

    def arrays_only(key: jax.Array) -> list[Any]:
        leaves, structure = jax.tree.flatten(draw(key))
        is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
        others = [None if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]
        kept[:] = [structure, others, is_array]
        return [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]

    shapes = iter(jax.eval_shape(arrays_only, rng_key))
    structure, others, is_array = kept
    leaves = [
        jnp.zeros(shape.shape, shape.dtype) if array and (shape := next(shapes)) else other
        for other, array in zip(others, is_array, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)
