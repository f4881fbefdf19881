# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Adapters from what a loss passes to a discriminator to the input of a plain net."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from spread_core.messages import players
from spread_core.messages.notes import noting


class SiteValues(dict[str, torch.Tensor]):
    """
    The values of the contrasted sites, as a discriminator gets them.

    :param values: dict from site to value, of shape ``batch_shape`` + rest.
    :param batch_shape: shape of the logits: of what counts the data, or in
        ``PriorContrastELBO`` of the plates that all contrasted sites share.
    :param arguments: dict from name to argument of the model, for critics that look them up.
    """

    def __init__(
        self,
        values: Mapping[str, torch.Tensor],
        batch_shape: tuple[int, ...] | torch.Size,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(values)
        self.batch_shape = torch.Size(batch_shape)
        self.arguments = dict(arguments or {})

    @property
    def batch_ndim(self) -> int:
        """Number of leading dimensions that count the data."""
        return len(self.batch_shape)

    def replaced(self, values: Mapping[str, torch.Tensor]) -> SiteValues:
        """Replace the values; batch shape and arguments stay."""
        return SiteValues(values, self.batch_shape, self.arguments)


def site_features(
    values: Mapping[str, torch.Tensor], name: str, kwargs: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """
    A contrasted site, else the model argument of that name, as features of every datum.

    :param values: what the discriminator got: :class:`SiteValues`, or a plain dict, whose values
        then have one batch dimension.
    :param name: of a site or a model argument.
    :param kwargs: keyword arguments that the discriminator got.
    :return: a tensor of a floating type, of shape batch + (features,).
    :raises ValueError: if there is no such value, or it does not begin with the batch shape.
    """
    # Those of the losses come first: they are reduced to what a plate subsampled.
    arguments = {**(kwargs or {}), **getattr(values, "arguments", {})}
    value = values[name] if name in values else arguments.get(name)
    if value is None:
        raise ValueError(players.no_such_value(name, values, arguments))
    like = next((v for v in values.values() if v.is_floating_point()), None)
    value = torch.as_tensor(value, device=None if like is None else like.device)
    if like is not None:
        dtype = like.dtype
    else:  # a head looks up what it needs, and no values are compared
        dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
    batch = getattr(values, "batch_shape", value.shape[:1])
    if value.shape[: len(batch)] != batch:
        raise ValueError(players.feature_shape(name, value.shape, batch))
    return value.to(dtype).reshape(*batch, -1)


class ConcatSites(nn.Module):
    """A discriminator made from a plain net; see :func:`concat_sites`."""

    def __init__(self, net: Callable[[torch.Tensor], torch.Tensor], names: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self.names = names

    def forward(
        self, values: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Logits of shape batch.

        :param values: dict from site to value.
        :param args: arguments of the model; looked up by name in ``values.arguments``.
        :param kwargs: keyword arguments of the model.
        :raises ValueError: if a name is unknown or the net does not give one logit per datum.
        """
        logits, batch = self.output(values, kwargs)
        if logits.shape == (*batch, 1):
            return logits.squeeze(-1)
        if logits.shape != batch:
            raise ValueError(players.net_output_shape(logits.shape, batch))
        return logits

    def output(
        self, values: Mapping[str, torch.Tensor], kwargs: Mapping[str, Any]
    ) -> tuple[Any, torch.Size]:
        """
        What the net returns, and the batch shape of its input.

        :param values: dict from site to value.
        :param kwargs: keyword arguments of the model.
        :raises ValueError: if a name is unknown.
        """
        names = self.names or tuple(values)
        features = [site_features(values, name, kwargs) for name in names]
        joined = features[0] if len(features) == 1 else torch.cat(features, -1)
        widths = {name: part.shape[-1] for name, part in zip(names, features, strict=True)}
        with noting(lambda: players.net_failed(widths)):
            return self.net(joined), joined.shape[:-1]


def concat_sites(net: Callable[[torch.Tensor], torch.Tensor], *names: str) -> ConcatSites:
    """
    Make a discriminator that passes the named sites, flattened and concatenated, to a plain net.

        >>> import torch
        >>> critic = concat_sites(torch.nn.Linear(6, 1), "x", "label")
        >>> critic({"x": torch.zeros(5, 2, 2)}, label=torch.zeros(5, 2)).shape
        torch.Size([5])

    :param net: from features of shape batch + (features,) to logits of shape batch or batch + (1,);
        a trailing dimension of one is dropped.
    :param names: sites, else arguments of the model, in this order; all contrasted sites if left
        out. Integer values are cast to floating point: encode class labels before.
    :return: a module ``discriminator(values, *args, **kwargs) -> logits``.
    :raises TypeError: if net is not callable or a name is not a string.
    """
    if not callable(net):
        raise TypeError(players.no_critic(net, "callable"))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(players.bad_range("concat_sites: names", name, "strings"))
    return ConcatSites(net, names)
