# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Adapters from what a loss passes to a discriminator to the input of a plain net."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spread_core.messages import players
from spread_core.messages.notes import noting


@jax.tree_util.register_pytree_node_class
class SiteValues(dict[str, jax.Array]):
    """
    The values of the contrasted sites, as a discriminator gets them.

    :param values: dict from site to value, of shape ``batch_shape`` + rest.
    :param batch_shape: shape of the logits: of what counts the data, or in
        ``PriorContrastELBO`` of the plates that all contrasted sites share.
    :param arguments: dict from name to argument of the model, for critics that look them up.
    """

    def __init__(
        self,
        values: Mapping[str, jax.Array],
        batch_shape: tuple[int, ...],
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(values)
        self.batch_shape = tuple(batch_shape)
        self.arguments = dict(arguments or {})

    @property
    def batch_ndim(self) -> int:
        """Number of leading dimensions that count the data."""
        return len(self.batch_shape)

    def replaced(self, values: Mapping[str, jax.Array]) -> SiteValues:
        """Replace the values; batch shape and arguments stay."""
        return SiteValues(values, self.batch_shape, self.arguments)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """Children and static data of the pytree."""
        return (dict(self), self.arguments), self.batch_shape

    @classmethod
    def tree_unflatten(cls, batch_shape: tuple[int, ...], children: Any) -> SiteValues:
        """The object that :meth:`tree_flatten` took apart."""
        values, arguments = children
        return cls(values, batch_shape, arguments)


def site_features(
    values: Mapping[str, jax.Array], name: str, kwargs: Mapping[str, Any] | None = None
) -> jax.Array:
    """
    A contrasted site, else the model argument of that name, as features of every datum.

    :param values: what the discriminator got: :class:`SiteValues`, or a plain dict, whose values
        then have one batch dimension.
    :param name: of a site or a model argument.
    :param kwargs: keyword arguments that the discriminator got.
    :return: an array of a floating type, of shape batch + (features,).
    :raises ValueError: if there is no such value, or it does not begin with the batch shape.
    """
    # Those of the losses come first: they are reduced to what a plate subsampled.
    arguments = {**(kwargs or {}), **getattr(values, "arguments", {})}
    value = values[name] if name in values else arguments.get(name)
    if value is None:
        raise ValueError(players.no_such_value(name, values, arguments))
    # As JAX will hold it: a NumPy array of doubles may stay outside.
    dtypes = map(jnp.result_type, values.values())
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    value = jnp.asarray(value)
    if floating:
        value = value.astype(floating[0])
    elif not jnp.issubdtype(value.dtype, jnp.floating):  # a head looks up what it needs
        value = value.astype(float)
    batch = getattr(values, "batch_shape", value.shape[:1])
    if value.shape[: len(batch)] != batch:
        raise ValueError(players.feature_shape(name, value.shape, batch))
    return value.reshape(*batch, -1)


class ConcatSites:
    """A discriminator made from a plain net; see :func:`concat_sites`."""

    def __init__(self, net: Any, names: tuple[str, ...]) -> None:
        self.net = net
        self.names = names

    def features(self, values: Mapping[str, jax.Array], kwargs: Mapping[str, Any]) -> jax.Array:
        """Input of the net, of shape batch + (features,)."""
        found = [site_features(values, name, kwargs) for name in self.names or values]
        return found[0] if len(found) == 1 else jnp.concatenate(found, -1)

    def widths(self, values: Mapping[str, jax.Array], kwargs: Mapping[str, Any]) -> dict[str, int]:
        """How many features each name gives."""
        names = self.names or tuple(values)
        return {name: site_features(values, name, kwargs).shape[-1] for name in names}

    def logits(self, output: jax.Array, batch: tuple[int, ...]) -> jax.Array:
        """
        Logits of shape batch out of the net's output.

        :raises ValueError: if the net does not give one logit per datum.
        """
        if output.shape == (*batch, 1):
            return output.squeeze(-1)
        if output.shape != batch:
            raise ValueError(players.net_output_shape(output.shape, batch))
        return output

    def __call__(self, values: Mapping[str, jax.Array], *args: Any, **kwargs: Any) -> jax.Array:
        """
        Logits of shape batch, where the net can be called directly (not with flax linen).

        :param values: dict from site to value.
        :param args: arguments of the model; looked up by name in ``values.arguments``.
        :param kwargs: keyword arguments of the model.
        :raises ValueError: if a name is unknown or the net does not give one logit per datum.
        """
        features = self.features(values, kwargs)
        with noting(lambda: players.net_failed(self.widths(values, kwargs))):
            output = self.net(features)
        return self.logits(output, features.shape[:-1])


def concat_sites(net: Callable[..., Any], *names: str) -> ConcatSites:
    """
    Make a discriminator that passes the named sites, flattened and concatenated, to a plain net.

        >>> import jax.numpy as jnp
        >>> critic = concat_sites(lambda features: features.sum(-1), "x", "label")
        >>> critic({"x": jnp.zeros((5, 2, 2))}, label=jnp.zeros((5, 2))).shape
        (5,)

    :param net: from features of shape batch + (features,) to logits of shape batch or batch + (1,);
        a trailing dimension of one is dropped. A module of flax linen, flax nnx or equinox (which
        is called datum by datum, as equinox's layers are).
    :param names: sites, else arguments of the model, in this order; all contrasted sites if left
        out. Integer values are cast to floating point: encode class labels before.
    :return: a discriminator for the losses.
    :raises TypeError: if net is not callable or a name is not a string.
    """
    if not callable(net):
        raise TypeError(players.no_critic(net, "callable"))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(players.bad_range("concat_sites: names", name, "strings"))
    return ConcatSites(net, names)
