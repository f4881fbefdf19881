# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Discriminators of flax linen, flax nnx and equinox as pure functions of their params."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_spread._pytree import widened
from numpyro_spread.ratio.adapters import ConcatSites, SiteValues
from spread_core.arguments import accepts
from spread_core.messages import players
from spread_core.messages.notes import noting
from spread_core.typing import Args, Kwargs

_CALLED = "a module that takes the dict of sites and the arguments of the model"
_WANTED = "a module of flax linen, flax nnx or equinox, or concat_sites(...) of one"


def bind(discriminator: Any) -> Bound:
    """
    ``discriminator`` as a pure function.

    :raises TypeError: if it is a module of none of the known libraries.
    """
    net = discriminator.net if isinstance(discriminator, ConcatSites) else discriminator
    # A module of a library that was never imported cannot exist.
    linen, nnx = _loaded("flax.linen"), _loaded("flax.nnx")
    equinox = _loaded("equinox")
    if linen is not None and isinstance(net, linen.Module):
        return _Linen(discriminator, net)
    if nnx is not None and isinstance(net, nnx.Module):
        return _Nnx(discriminator, net)
    if equinox is not None and isinstance(net, equinox.Module):
        return _Equinox(discriminator, net)
    raise TypeError(players.no_critic(net, _WANTED))


def _loaded(name: str) -> Any:
    return sys.modules.get(name)


class Bound:
    """
    A discriminator that keeps no state: ``params`` come from outside.

    :param discriminator: the module itself, or :class:`ConcatSites` around it.
    :param net: the module.
    """

    #: Whether samples of one batch may influence each other's logits, as batch normalisation does.
    coupled = False

    def __init__(self, discriminator: Any, net: Any) -> None:
        self._adapter = discriminator if isinstance(discriminator, ConcatSites) else None
        self.net = net

    def init(self, rng_key: jax.Array, values: SiteValues, args: Args, kwargs: Kwargs) -> Any:
        """
        Initial params.

        :param rng_key: random key.
        :param values: values of the shapes that the critic will see.
        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        raise NotImplementedError

    def apply(self, params: Any, values: SiteValues, args: Args, kwargs: Kwargs) -> jax.Array:
        """
        Logits, in float32 if the net gives 16 bits.

        :param params: as :meth:`init` returned them.
        :param values: values of the contrasted sites.
        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        :raises ValueError: if they do not have the batch shape.
        """
        if self._adapter is None:
            shapes = {name: jnp.shape(value) for name, value in values.items()}
            try:
                with noting(lambda: players.critic_failed(shapes, values.batch_shape)):
                    logits = self._call(params, values, *args, **kwargs)
            except TypeError as error:
                if accepts(type(self.net).__call__, self.net, values, *args, **kwargs):
                    raise
                raise TypeError(players.no_critic(self.net, _CALLED)) from error
        else:
            features = self._adapter.features(values, kwargs)
            widths = self._adapter.widths(values, kwargs)
            with noting(lambda: players.net_failed(widths)):
                output = self._call_net(params, features)
            logits = self._adapter.logits(output, features.shape[:-1])
        if jnp.shape(logits) != values.batch_shape:
            raise ValueError(players.logit_shape(jnp.shape(logits), values.batch_shape))
        return widened(logits)

    def init_call(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        """
        Initial params of a module that is called with the arguments alone.

        :param rng_key: random key.
        :param args: arguments of the module.
        :param kwargs: keyword arguments of the module.
        """
        raise NotImplementedError

    def call(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the module with the arguments; 16-bit results are converted to float32."""
        return jax.tree.map(widened, self._call(params, *args, **kwargs))

    def init_at(self, rng_key: jax.Array, values: SiteValues, args: Args, kwargs: Kwargs) -> Any:
        """
        Initial params of a module that is called by :meth:`call_at`.

        :param rng_key: random key.
        :param values: what can be looked up.
        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        if self._adapter is None:
            return self.init_call(rng_key, *args, **kwargs)
        return self.init_call(rng_key, self._adapter.features(values, kwargs))

    def call_at(self, params: Any, values: SiteValues, args: Args, kwargs: Kwargs) -> Any:
        """
        Call the module with the arguments, or with what :class:`ConcatSites` looks up.

        :param params: as :meth:`init_at` returned them.
        :param values: what can be looked up.
        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        :return: what the module returns; 16-bit results are converted to float32.
        """
        if self._adapter is None:
            return self.call(params, *args, **kwargs)
        features = self._adapter.features(values, kwargs)
        return jax.tree.map(widened, self._call_net(params, features))

    def call_rows(self, params: Any, rows: jax.Array) -> Any:
        """
        Call the module with a batch, of one axis in front; equinox's are called with each element.

        :param params: as :meth:`init_call` returned them.
        :param rows: of shape (batch,) + shape of an element.
        """
        return self.call(params, rows)

    def _call(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def _call_net(self, params: Any, features: jax.Array) -> Any:
        """The net's output for a batch of features."""
        return self._call(params, features)


class _Linen(Bound):
    def init(self, rng_key: jax.Array, values: SiteValues, args: Args, kwargs: Kwargs) -> Any:
        if self._adapter is None:
            if not accepts(type(self.net).__call__, self.net, values, *args, **kwargs):
                raise TypeError(players.no_critic(self.net, _CALLED))
            return self.init_call(rng_key, values, *args, **kwargs)
        return self.init_call(rng_key, self._adapter.features(values, kwargs))

    def init_call(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        variables = self.net.init(rng_key, *args, **kwargs)
        # Running averages are of no use here: a critic is only ever asked about fresh batches.
        return variables.get("params", {})

    def apply(self, params: Any, values: SiteValues, args: Args, kwargs: Kwargs) -> jax.Array:
        self.coupled = False
        return super().apply(params, values, args, kwargs)

    def _call(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        variables = {"params": params}
        output, state = self.net.apply(variables, *args, mutable=["batch_stats"], **kwargs)
        self.coupled = self.coupled or bool(jax.tree.leaves(state))
        return output


class _Nnx(Bound):
    def __init__(self, discriminator: Any, net: Any) -> None:
        super().__init__(discriminator, net)
        from flax import nnx

        power_iterated = getattr(nnx, "SpectralNorm", ())  # flax has it from 0.12 on
        for _, module in nnx.iter_graph(net):
            random = isinstance(module, nnx.Dropout) and module.rate > 0
            if isinstance(module, power_iterated) or (random and not module.deterministic):
                raise NotImplementedError(players.stateful_critic(type(module).__name__))
        self._nnx = nnx
        self._graph, self._params, self._rest = nnx.split(net, nnx.Param, ...)
        self.coupled = any(
            isinstance(leaf, nnx.BatchStat)
            for leaf in jax.tree.leaves(self._rest, is_leaf=lambda x: isinstance(x, nnx.Variable))
        )

    def init(self, rng_key: jax.Array, values: SiteValues, args: Args, kwargs: Kwargs) -> Any:
        return self.init_call(rng_key)

    def init_call(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        return self._nnx.to_pure_dict(self._params)

    def _call(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        state = jax.tree.map(lambda leaf: leaf, self._params)  # replaced in place below
        self._nnx.replace_by_pure_dict(state, params)
        rest = jax.tree.map(lambda leaf: leaf, self._rest)
        return self._nnx.merge(self._graph, state, rest)(*args, **kwargs)


class _Equinox(Bound):
    def __init__(self, discriminator: Any, net: Any) -> None:
        super().__init__(discriminator, net)
        import equinox

        self._equinox = equinox
        self._params, self._static = equinox.partition(net, equinox.is_inexact_array)

    def init(self, rng_key: jax.Array, values: SiteValues, args: Args, kwargs: Kwargs) -> Any:
        return self.init_call(rng_key)

    def init_call(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        return self._params

    def _call(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        return self._equinox.combine(params, self._static)(*args, **kwargs)

    def call_rows(self, params: Any, rows: jax.Array) -> Any:
        return jax.vmap(lambda row: self.call(params, row))(rows)

    def _call_net(self, params: Any, features: jax.Array) -> Any:
        # Equinox's own layers take one datum.
        batch = features.shape[:-1]
        flat = features.reshape(-1, features.shape[-1])
        output = jax.vmap(self._equinox.combine(params, self._static))(flat)
        return jax.tree.map(lambda part: part.reshape(*batch, *part.shape[1:]), output)
