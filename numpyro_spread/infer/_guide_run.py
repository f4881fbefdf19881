# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One run of guide and model, as the parts of a contrast see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.distributions import Distribution
from numpyro.handlers import seed, substitute, trace

from numpyro_spread._gradients import refuse_gradient
from numpyro_spread.infer._scan import Inside, is_scanned
from numpyro_spread.infer._series import whole
from numpyro_spread.infer._sites import is_black_box, is_implicit
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

    def prior(self, name: str, rng_key: jax.Array) -> Distribution | None:
        """
        The prior of an implicit site, given the guide's values at all others.

        :return: of the guide's batch shape; None if the site is none of the model, is a series, or
            has no density.
        """
        if "_covers" in self.trace[name]["infer"] or is_scanned(self.trace[name]):
            return None
        fn = self._at_guide_batch(name, rng_key)
        return None if is_implicit(fn) or is_black_box(fn) else fn

    def prior_draws(
        self, shapes: Mapping[str, tuple[int, ...]], rng_key: jax.Array, count: int | None
    ) -> dict[str, Any]:
        """
        Draws of the model at sites of one critic, given the guide's values at all others.

        :param shapes: dict from site to the shape of its value.
        :param rng_key: random key.
        :param count: number of draws per datum; None for one, without a dimension for it.
        """
        infers = {name: self.trace[name]["infer"] for name in shapes}
        drawn = {site for name in shapes for site in infers[name].get("_covers", (name,))}
        run_key, draw_key = random.split(rng_key)
        # Not of a series, whose steps depend on those before.
        steps = any(is_scanned(self.trace[name]) for name in shapes)
        if drawn == set(shapes) and len(drawn) == 1 and not steps:
            (name,) = drawn
            fn = self._at_guide_batch(name, run_key)

            def draw(key: jax.Array) -> dict[str, jax.Array]:
                return {name: _detach(name, fn, fn.sample(key))}
        else:  # ancestral: what is drawn later depends on what was drawn before

            def draw(key: jax.Array) -> dict[str, jax.Array]:
                sites = self.prior_trace(drawn, key)
                values = {}
                for name, infer in infers.items():
                    if "_covers" in infer:
                        covered = {site: sites[site]["value"] for site in infer["_covers"]}
                        value = infer["_unconstrain"](covered)
                    else:
                        value = whole(sites[name])["value"]
                    values[name] = jnp.broadcast_to(value, shapes[name])
                return stop_gradient_tree(values)

        return draw(draw_key) if count is None else jax.vmap(draw)(random.split(draw_key, count))

    def _at_guide_batch(self, name: str, rng_key: jax.Array) -> Any:
        """The model's distribution at one site, given the guide's values at all others."""
        fn = self.prior_trace(set(), rng_key)[name]["fn"]
        batch_shape = self.implicit[name][0].batch_shape
        return fn if fn.batch_shape == batch_shape else fn.expand(batch_shape)


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
