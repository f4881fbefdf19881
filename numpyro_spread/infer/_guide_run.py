# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One run of guide and model, as the parts of a contrast see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax
from numpyro.distributions import Distribution
from numpyro.handlers import seed, substitute, trace

from numpyro_spread._gradients import refuse_gradient
from numpyro_spread.infer._scan import Inside
from numpyro_spread.infer._sites import is_implicit
from spread_core.contrast_options import ContrastOptions
from spread_core.messages import contrasts


class GuideRun:
    """
    One run of the guide, and runs of the model at its values.

    :param options: of the loss.
    :param rng_key: random key for all draws that the stock ELBO does not make.
    :param params: values of param sites; None while they are being initialised.
    :param model: the model, unspread.
    :param args: positional arguments of model and guide, after the noise.
    :param kwargs: keyword arguments of both.
    """

    def __init__(
        self,
        options: ContrastOptions,
        rng_key: jax.Array,
        params: Mapping[str, Any] | None,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.options, self.params, self.model = options, params, model
        self.args, self.kwargs = args, kwargs
        self._rng_key = rng_key
        #: All latent sites and plates of the guide.
        self.trace: dict[str, Any] = {}
        #: What the guide computed at deterministic sites, and after how many of the others.
        self.computed: dict[str, tuple[Any, int]] = {}
        #: Dict from implicit site to distribution and mask.
        self.implicit: dict[str, tuple[Distribution, Any]] = {}

    def prior_trace(self, drawn: set[str], rng_key: jax.Array) -> dict[str, Any]:
        """
        A run of the model at the guide's values, all of which are constants.

        :param drawn: latents that are drawn from the model instead.
        :param rng_key: random key.
        """
        fixed = {n: lax.stop_gradient(s["value"]) for n, s in self.trace.items() if n not in drawn}
        # Containers are copied, since a model may write to those of mutable sites.
        params = jax.tree.map(lambda leaf: leaf, dict(self.params or {}))
        seeded = seed(substitute(substitute(self.model, data=params), data=fixed), rng_key)
        sites: dict[str, Any] = trace(_Detached(seeded)).get_trace(
            *stop_gradient_tree(self.args), **stop_gradient_tree(self.kwargs)
        )
        return sites

    def prior_draw(self, name: str, rng_key: jax.Array) -> Callable[[jax.Array], Any]:
        """From a key to a draw of the model at one site, given the guide's values at all others."""
        site = self.prior_trace(set(), rng_key)[name]
        fn = site["fn"]
        batch_shape = self.implicit[name][0].batch_shape
        if fn.batch_shape != batch_shape:
            fn = fn.expand(batch_shape)
        return lambda key: _detach(name, fn, fn.sample(key))


def stop_gradient_tree(tree: Any) -> Any:
    """``tree`` without gradients; what is no array of JAX, as NumPy's constants, stays."""
    return jax.tree.map(
        lambda leaf: lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, tree
    )


class _Detached(Inside):
    """Detach the draws of a model, from which nothing is learned."""

    def postprocess_message(self, msg: Any) -> None:
        super().postprocess_message(msg)
        if msg["type"] == "sample":
            self.leave(msg)

    def leave(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["value"] = _detach(msg["name"], msg["fn"], msg["value"])


def _detach(name: str, fn: Any, value: Any) -> Any:
    if is_implicit(fn):
        # What is learned elsewhere has a density through which it gets a gradient.
        value = refuse_gradient(value, NotImplementedError(contrasts.learned_implicit_prior(name)))
    return lax.stop_gradient(value)
