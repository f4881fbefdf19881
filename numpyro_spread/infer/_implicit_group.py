# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The implicit sites that one critic judges together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

from numpyro_spread.infer._critic import penalty_in_turn, warn_of_coupling
from numpyro_spread.infer._gaussian_contrast import GaussianContrast
from numpyro_spread.infer._guide_run import GuideRun, stop_gradient_tree
from numpyro_spread.infer._plate_arguments import named_arguments, subsampled
from numpyro_spread.infer._scan import is_scanned
from numpyro_spread.infer._series import time_last, whole
from numpyro_spread.noise.base import is_concrete, where_valid
from numpyro_spread.ratio.adapters import SiteValues
from numpyro_spread.ratio.losses import logistic_loss, weighted_mean
from spread_core.logits import Logits
from spread_core.math.normaliser import log_normaliser
from spread_core.messages import contrasts, players

# Folded into keys, so that the other draws stay as they are.
_NORMALISER = 0x5EED0005


class ImplicitGroup:
    """
    One critic, its sites, their contrast and the critic's inputs.

    :param run: the run of the guide.
    :param key: of the critic among critics.
    :param names: its sites, in the order of drawing.
    :param rng_key: random key.
    :raises ValueError: if one critic cannot judge these sites.
    """

    def __init__(
        self, run: GuideRun, key: str | None, names: Sequence[str], rng_key: jax.Array
    ) -> None:
        self._run, self._key, self._names = run, key, names
        self._draw_key, self._contrast_key, self._penalty_key = random.split(rng_key, 3)
        first = self._site(names[0])
        self._frames = first["cond_indep_stack"]
        self._batch_shape = tuple(first["fn"].batch_shape)
        self._mask = run.implicit[names[0]][1]
        self._alike: Any = True  # as far as is known only under jit
        self._check_alike()
        self._weights = self._weigh(names[0])
        self._arguments = self._find_arguments()
        self._num_draws = self._count_draws()
        self._prepared = False

    def log_q(self, name: str) -> jax.Array:
        """The estimate at one of the sites; the joint logit is booked at the first."""
        self._prepare()
        log_q, options = jnp.zeros(self._batch_shape), self._run.options
        if name in self._contrasts:
            contrast = self._contrasts[name]
            log_q = contrast.log_prob(self._values[name])
            if options.full and contrast.num_draws is None:
                log_q = log_q + contrast.plug_in_regret(len(self._moment_draws[name]))
        if name == self._names[0]:
            critic = stop_gradient_tree(self._params)
            values = SiteValues(self._shown, self._batch_shape, self._arguments)
            log_q = log_q + self._critic.apply(critic, values, self._run.args, self._run.kwargs)
            if not is_concrete(self._alike):
                log_q = where_valid(log_q, self._alike)
            if options.num_normaliser_draws:
                log_q = log_q - self._log_normaliser()
        return log_q if self._mask is None else jnp.where(self._batch_mask, log_q, 0.0)

    def _log_normaliser(self) -> jax.Array:
        """Of the density that the critic stands for, of the batch shape."""
        key = random.fold_in(self._contrast_key, _NORMALISER)
        keys = random.split(key, len(self._contrasts))
        num_numbers = sum(v.size for v in self._values.values())
        count = self._run.options.count_normaliser_draws(num_numbers)
        drawn = {
            name: each.draw(key, (count,))
            for key, (name, each) in zip(keys, self._contrasts.items(), strict=True)
        }
        return log_normaliser(self._judge(stop_gradient_tree(self._params), drawn, several=True))

    def critic_loss(self) -> tuple[jax.Array, Logits]:
        """The loss of critic and head, a scalar in nats; and logits, detached."""
        options = self._run.options
        data, model = self._both_sides()
        logits = self._judge_both(self._params, data, model)
        weights = logits.weights_p
        if weights is not None:
            counts = weights.sum() > 0
            weights = jnp.where(counts, weights, 1.0)  # zero divided by zero has no gradient
        loss = logistic_loss(logits.p, logits.q, 0.5, weights, weights)
        if options.regularizer is not None:
            shown = SiteValues(
                stop_gradient_tree(self._shown),
                self._batch_shape,
                stop_gradient_tree(self._arguments),
            )
            called = stop_gradient_tree((self._run.args, self._run.kwargs))
            warn_of_coupling(self._critic, self._params, shown, *called)
        asked = self._penalty_key, options.regularizer, self._judge, self._params
        loss = loss + penalty_in_turn(*asked, data, model, (weights, weights))
        if options.head is not None:
            loss = loss + self._head_loss(weights)
        if weights is not None:  # nobody learns from a batch of which nothing counts
            loss = jnp.where(counts, loss, 0.0)
        return loss, stop_gradient_tree(logits)

    def logits(self) -> Logits:
        """Logits at guide draws and at the contrast's; several draws lead the batch shape."""
        sides = self._both_sides()
        logits: Logits = stop_gradient_tree(
            self._judge_both(stop_gradient_tree(self._params), *sides)
        )
        return logits

    def example(self) -> tuple[SiteValues, tuple[Any, ...], dict[str, Any]]:
        """Values of the shapes that the critic will see, and arguments as the head gets them."""
        values = {name: self._site(name)["value"] for name in self._names}
        args, kwargs = self._own_arguments()
        return SiteValues(values, self._batch_shape, self._arguments), args, kwargs

    # --- what the sites have in common

    def _site(self, name: str) -> Mapping[str, Any]:
        """A site of the guide's trace; what a scan returns, as whole series."""
        return whole(self._run.trace[name])

    def _check_alike(self) -> None:
        first = self._names[0]
        for name in self._names[1:]:
            site, mask = self._site(name), self._run.implicit[name][1]
            here = {(frame.name, frame.dim) for frame in site["cond_indep_stack"]}
            plates = {(frame.name, frame.dim) for frame in self._frames}
            if here != plates or tuple(site["fn"].batch_shape) != self._batch_shape:
                raise ValueError(contrasts.contrast_mismatch("plates", first, name))
            scales = site["scale"], self._run.trace[first]["scale"]
            for what, pair in (("masks", (mask, self._mask)), ("scales", scales)):
                same = _same(*pair)
                if is_concrete(same) and not same:
                    raise ValueError(contrasts.contrast_mismatch(what, first, name))
                self._alike = self._alike & same

    def _weigh(self, name: str) -> jax.Array | None:
        """How much each datum counts for the critic; one number for all cancels in the mean."""
        value, scale = self._run.trace[name]["value"], self._run.trace[name]["scale"]
        weights = None
        if self._mask is not None:
            weights = jnp.asarray(self._batch_mask, value.dtype)
        if scale is not None and jnp.ndim(scale) > 0:
            try:
                scale = jnp.broadcast_to(scale, self._batch_shape).astype(value.dtype)
            except ValueError as error:
                shapes = jnp.shape(scale), jnp.shape(value)
                raise ValueError(players.mask_misfit(name, *shapes)) from error
            weights = scale if weights is None else weights * scale
        return None if weights is None else lax.stop_gradient(weights)

    def _find_arguments(self) -> dict[str, Any]:
        """The model's arguments by name, and the guide's other values drawn before."""
        run = self._run
        arguments = named_arguments(
            run.model, run.args, run.kwargs, run.trace, self._frames, self._batch_shape
        )
        if is_scanned(run.trace[self._names[0]]):
            # Arguments are laid out as the scan takes them: time first, then the plates.
            batch = tuple(run.trace[self._names[0]]["fn"].batch_shape)
            for name, value in arguments.items():
                if isinstance(value, jax.Array | np.ndarray) and value.shape[: len(batch)] == batch:
                    arguments[name] = time_last(value, len(self._batch_shape))
        for name, site in run.trace.items():
            if name == self._names[0]:
                break
            if site["type"] == "sample":
                arguments[name] = self._on_batch(whole(site))
        place = list(run.trace).index(self._names[0])
        computed = {name: value for name, (value, when) in run.computed.items() if when <= place}
        return arguments | stop_gradient_tree(computed)

    def _on_batch(self, site: Mapping[str, Any]) -> Any:
        """A value of the guide, repeated for every datum where it is shared by several."""
        value, event_dim = site["value"], site["fn"].event_dim
        batch, event = jnp.shape(value)[: -event_dim or None], site["fn"].event_shape
        missing = len(self._batch_shape) - len(batch)
        if missing >= 0 and np.all(
            [a in (1, b) for a, b in zip(batch, self._batch_shape[missing:], strict=True)]
        ):
            padded = value.reshape(*[1] * missing, *batch, *event)
            return jnp.broadcast_to(padded, (*self._batch_shape, *event))
        return value

    def _own_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, as they came, reduced to what plates subsampled."""
        run = self._run
        given: dict[Any, Any] = dict(enumerate(run.args)) | run.kwargs
        reduced = subsampled(given, run.trace, self._frames, self._batch_shape)
        args = tuple(reduced.pop(index) for index in range(len(run.args)))
        return args, reduced

    def _count_draws(self) -> int:
        """Guide draws per datum from which the critic learns."""
        if len(self._names) > 1:
            return 1  # the second may depend on the first: only the ELBO's own are joint
        return self._run.options.count_critic_draws(self._num_at_once())

    def _num_at_once(self) -> int:
        """Number of data in the batch, counting those of every particle."""
        return math.prod(self._batch_shape) * self._run.options.num_at_once

    # --- draws and contrasts

    def _prepare(self) -> None:
        """
        Draw what is needed beyond the ELBO's own draws.

        Not in the constructor, which is also called while params are being initialised.
        """
        if self._prepared:
            return
        self._prepared = True
        run, options = self._run, self._run.options
        self._values: dict[str, jax.Array] = {}
        self._fresh: dict[str, jax.Array] = {}
        self._moment_draws: dict[str, jax.Array] = {}
        self._contrasts: dict[str, GaussianContrast] = {}
        self._critic: Any = options.critic(self._key)
        params = (run.params or {})[options.params_site]
        self._params = params if self._key is None else params[self._key]
        from_moments = options.adaptive and options.head is None
        num_moments = options.count_moment_draws(self._num_at_once()) if from_moments else 0
        num_fresh = self._num_draws if self._num_draws > 1 else 0
        keys = random.split(self._draw_key, len(self._names))
        for name, key in zip(self._names, keys, strict=True):
            fn = run.implicit[name][0]
            self._values[name] = self._counted(name, self._site(name)["value"])
            if num_moments + num_fresh:
                # One by one, so that fn need not know of leading dimensions.
                draws = jax.vmap(fn.sample)(random.split(key, num_moments + num_fresh))
                draws = self._counted(name, lax.stop_gradient(draws))
            if num_fresh:
                self._fresh[name] = draws[num_moments:]
            if from_moments:
                self._moment_draws[name] = draws[:num_moments]
                self._contrasts[name] = self._of_draws(name, draws[:num_moments])
            elif options.adaptive:
                frozen = stop_gradient_tree(self._head_params)
                self._contrasts[name] = self._head(name, frozen).detach()
        self._shown = self._standardised(self._values)

    def _of_draws(self, name: str, draws: jax.Array) -> GaussianContrast:
        """The contrast, its moments checked; those of masked data are replaced."""
        event_dim, kept = self._run.implicit[name][0].event_dim, self._kept_steps(name)
        contrast = GaussianContrast.from_draws(draws, event_dim)
        loc, scale = contrast.loc, contrast.scale
        if self._mask is not None:
            kept = self._on_event(name)
            loc, scale = jnp.where(kept, loc, 0.0), jnp.where(kept, scale, 1.0)
        # Written so that NaN fails too.
        valid = (scale > np.finfo(scale.dtype).eps * jnp.abs(loc)) & jnp.isfinite(scale)
        if not is_concrete(valid):
            loc = where_valid(loc, valid)
        elif not np.asarray(valid).all():
            raise ValueError(contrasts.collapsed_guide(name))
        if self._run.options.full and kept is None:
            full = GaussianContrast.of_covariance(draws, event_dim)
            full = replace(full, loc=loc)
            return full if self._mask is None else full.where(self._on_event(name))
        return GaussianContrast(loc, scale, event_dim, contrast.num_draws, kept)

    def _kept_steps(self, name: str) -> Any:
        """Of a series, steps may be masked."""
        steps = self._mask is not None and self._mask.ndim > len(self._batch_shape)
        return self._on_event(name) if steps else None

    @property
    def _batch_mask(self) -> Any:
        """Which data count, all or some of which is not masked."""
        if self._mask.ndim == len(self._batch_shape):
            return self._mask
        return self._mask.any(tuple(range(len(self._batch_shape), self._mask.ndim)))

    def _on_event(self, name: str) -> Any:
        ndim = len(self._batch_shape) + self._run.implicit[name][0].event_dim
        return self._mask.reshape(*self._mask.shape, *[1] * (ndim - self._mask.ndim))

    def _counted(self, name: str, value: jax.Array) -> jax.Array:
        """``value`` without what is masked, which may be NaN and would come back as a gradient."""
        return value if self._mask is None else jnp.where(self._on_event(name), value, 0.0)

    def _standardised(self, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            name: self._contrasts[name].standardise(value) if name in self._contrasts else value
            for name, value in values.items()
        }

    def _both_sides(self) -> tuple[SiteValues, SiteValues]:
        """The critic's training samples: guide draws and contrast draws, without gradient."""
        self._prepare()
        run = self._run
        data = stop_gradient_tree(self._standardised(self._fresh) if self._fresh else self._shown)
        leading = (self._num_draws,) if self._fresh else ()
        if run.options.adaptive:
            keys = random.split(self._contrast_key, len(self._names))
            model = {
                name: self._contrasts[name].draw(key, leading)
                for name, key in zip(self._names, keys, strict=True)
            }
        else:
            shapes = {name: jnp.shape(self._values[name]) for name in self._names}
            count = self._num_draws if self._fresh else None
            model = run.prior_draws(shapes, self._contrast_key, count)
        arguments, shape = stop_gradient_tree(self._arguments), (*leading, *self._batch_shape)
        if self._mask is not None:
            model = {name: self._counted(name, value) for name, value in model.items()}
        return SiteValues(data, shape, arguments), SiteValues(model, shape, arguments)

    # --- what critic and head learn

    def _judge(
        self, critic: Any, values: Mapping[str, jax.Array], several: bool | None = None
    ) -> jax.Array:
        """Logits; draws beyond one per datum, ``several`` by default if any, one by one."""
        several = bool(self._fresh) if several is None else several
        args, kwargs, arguments = stop_gradient_tree(
            (self._run.args, self._run.kwargs, self._arguments)
        )

        def judge(values: dict[str, jax.Array]) -> jax.Array:
            shown = SiteValues(values, self._batch_shape, arguments)
            return self._critic.apply(critic, shown, args, kwargs)

        logits: jax.Array = (jax.vmap(judge) if several else judge)(dict(values))
        return logits

    def _judge_both(self, critic: Any, data: SiteValues, model: SiteValues) -> Logits:
        weights = self._weights
        if weights is not None:
            weights = jnp.broadcast_to(weights, data.batch_shape)
        return Logits(self._judge(critic, data), self._judge(critic, model), weights, weights)

    @property
    def _head_params(self) -> Any:
        return (self._run.params or {})[self._run.options.head_site]

    def _head(self, name: str, params: Any) -> GaussianContrast:
        """The Gaussian that the head gives to a site."""
        args, kwargs, arguments = stop_gradient_tree((*self._own_arguments(), self._arguments))
        head: Any = self._run.options.head
        output = head.call_at(params, SiteValues({}, self._batch_shape, arguments), args, kwargs)
        shape = jnp.shape(self._values[name])
        if isinstance(output, Mapping):
            output = output.get(name)
        elif len(self._run.implicit) > 1:
            got = f"one pair for the sites {sorted(self._run.implicit)}"
            raise ValueError(contrasts.head_output(name, got, shape))
        try:
            fn, (loc, scale) = self._run.implicit[name][0], map(jnp.asarray, output)
            contrast = GaussianContrast.around(jnp.broadcast_to(loc, shape), scale, fn.event_dim)
        except (TypeError, ValueError) as error:
            got = jax.tree.map(jnp.shape, output)
            raise ValueError(contrasts.head_output(name, got, shape)) from error
        if self._mask is not None:
            kept_steps = self._kept_steps(name)
            if contrast.tril is not None and kept_steps is not None:
                raise NotImplementedError(contrasts.masked_factors(name))
            contrast = contrast.where(self._on_event(name), kept_steps)
        # Under jit the logarithm of what is not positive is NaN.
        if is_concrete(contrast.scale) and not bool((contrast.scale > 0).all()):
            raise ValueError(contrasts.head_scale(name))
        return contrast

    def _head_loss(self, weights: jax.Array | None) -> jax.Array:
        """Negative log likelihood of the guide's draws under the head."""
        total = jnp.zeros(())
        for name, value in (self._fresh or self._values).items():
            head = self._head(name, self._head_params)
            total = total - weighted_mean(head.log_prob(lax.stop_gradient(value)), weights)
        return total


def _same(first: Any, second: Any) -> Any:
    """Whether two masks or scales agree: a tracer where their values are not known."""
    if first is second:
        return True
    if first is None or second is None or jnp.shape(first) != jnp.shape(second):
        return False
    if not is_concrete(first, second):
        return jnp.array_equal(first, second)
    return np.array_equal(np.asarray(first), np.asarray(second))
