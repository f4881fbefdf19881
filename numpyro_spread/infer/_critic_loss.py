# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Base class of adversarial losses: exact gradients of both players, without interference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import lax, random
from numpyro.handlers import block

from numpyro_spread._typing import RngKey
from numpyro_spread.infer._critic import penalty_in_turn, warn_of_coupling
from numpyro_spread.infer._gradients import with_gradients
from numpyro_spread.infer._noise import (
    as_noise,
    declare_moves,
    kernels_now,
    kernels_of,
    state_sites,
)
from numpyro_spread.infer._registration import Loss, Registered, declare_params, example_of
from numpyro_spread.infer._two_sides import TwoSides, draw_sides, no_guide
from numpyro_spread.noise.base import is_concrete
from numpyro_spread.ratio._slopes import are_apart, others_move
from numpyro_spread.ratio.adapters import SiteValues
from numpyro_spread.ratio.binding import bind
from numpyro_spread.ratio.losses import weighted_mean
from numpyro_spread.ratio.regularizers import check_regularizer
from spread_core.logits import Logits
from spread_core.losses.critic_loss import CriticLossShared
from spread_core.messages import players, spreading
from spread_core.noise.moving import moving_kernels
from spread_core.typing import Guide, Model

# Weight below which a sample's gradient in the critic is lost in float32 next to that of the
# others.
_NEGLIGIBLE = 1e-12


class CriticLoss(CriticLossShared, Loss):
    """Base class of the losses in which a critic compares data with the model's draws."""

    _as_noise = staticmethod(as_noise)
    _check_regularizer = staticmethod(check_regularizer)

    #: Draws need no enumeration; ``SVI.init`` asks.
    can_infer_discrete = True

    def _bind(self, discriminator: Any) -> None:
        self._critic = bind(discriminator)

    def _watch(self, loss: jax.Array, rng_key: jax.Array, logits: Logits) -> jax.Array:
        """The loss, after a look for signs of trouble; called at every step."""
        return loss

    def register(
        self, model: Callable[..., Any], guide: Callable[..., Any] | None
    ) -> Callable[..., Any]:
        """
        The guide to hand to SVI: it carries the discriminator's params too.

        ``SVI.init`` collects params from model and guide only. The shapes of the critic's inputs
        are found by tracing the model abstractly.

        :param model: the model.
        :param guide: the guide; empty, or over global latents.
        :return: a guide of the same signature.
        """
        site = f"{self.name}$params"

        def declare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            declare_params(site, lambda: self._init(model, guide, args, kwargs))
            declare_moves(self.noise)

        return Registered(guide or no_guide, after=declare)

    def _init(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        rng_key = numpyro.prng_key()
        rng_key = random.key(0) if rng_key is None else rng_key
        draw_key, init_key = random.split(rng_key)
        kernels = kernels_of(self.noise, args, kwargs)

        def draw(key: jax.Array) -> SiteValues:
            return draw_sides(key, {}, model, guide, kernels, args, kwargs).data

        with block():
            return self._critic.init(init_key, example_of(draw, draw_key), args, kwargs)

    def loss(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """
        The reported value; its gradient in every param is that of the param's own player.

        It is the derivative of no single function: second derivatives make no sense.

        :param rng_key: random key; the same key gives the same draws.
        :param param_map: dict from param site to value.
        :param model: the model, as it is.
        :param guide: the guide that :meth:`register` returned.
        :raises ValueError: if sites, plates, masks and noise are inconsistent; the message names
            the site and says what to do.
        """
        return self.loss_with_mutable_state(rng_key, param_map, model, guide, *args, **kwargs)[
            "loss"
        ]

    def loss_with_mutable_state(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """Like :meth:`loss`, in a dict with the new mutable state."""
        if f"{self.name}$params" not in param_map:
            raise ValueError(players.not_registered(self.name))
        losses = []
        mutable: dict[str, Any] = {}
        seen = []
        for key in random.split(rng_key, self.num_particles):
            loss, mutable, logits = self._play_once(key, param_map, model, guide, args, kwargs)
            losses.append(loss)
            seen.append(logits)
        if mutable.keys() - state_sites(self.noise) and self.num_particles > 1:
            raise NotImplementedError(spreading.mutable_particles(self.num_particles))
        loss = losses[0] if len(losses) == 1 else jnp.mean(jnp.stack(losses))
        result = {"loss": loss, "mutable_state": mutable or None}
        if any(kernel._needs_critic for kernel in moving_kernels(self.noise).values()):
            rights = [self._accuracy(logits) for logits in seen]
            result["accuracy"] = sum(rights) / len(rights)
        return result

    def logits(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Logits:
        """
        The critic's logits at the given data and at fresh draws of the model, after the noise.

        With held-out data it shows how far the critic can be trusted:
        ``critic_report(logits.p, logits.q, pi)``. Nothing is trained.

        :param rng_key: random key.
        :param param_map: dict from param site to value, such as ``svi.get_params(state)``.
        :param model: the model.
        :param guide: the guide.
        :return: a named tuple ``(p, q, weights_p, weights_q)``, one logit for
            every datum; weights may be None.
        """
        if f"{self.name}$params" not in param_map:
            raise ValueError(players.not_registered(self.name))
        kernels = kernels_now(self.noise, param_map, args, kwargs)
        sides = draw_sides(rng_key, param_map, model, guide, kernels, args, kwargs)
        critic = param_map[f"{self.name}$params"]
        data, draws = (
            self._critic.apply(critic, values, args, kwargs) for values in (sides.data, sides.model)
        )
        return Logits(data, draws, sides.data_weights, sides.model_weights)

    def look(
        self, rng_key: RngKey, params: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> tuple[float, dict[str, Any]]:
        """The value and the critic's logits, of the same draws."""
        logits = self.logits(rng_key, params, model, guide, *args, **kwargs)
        return float(self._value(logits)), {"": logits}

    def _play_once(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[jax.Array, dict[str, Any], Logits]:
        """The reported value with both players' gradients, new mutable state, and the logits."""
        draw_key, penalty_key = random.split(rng_key)
        kernels = kernels_now(self.noise, params, args, kwargs)
        sides = draw_sides(draw_key, params, model, guide, kernels, args, kwargs)
        learned = {"critic": params[f"{self.name}$params"], "model": dict(sides.model)}
        # Both players see the other, and the data, as constants.
        frozen = lax.stop_gradient(learned)
        data = sides.data.replaced(lax.stop_gradient(dict(sides.data)))

        def judge(critic: Any, values: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            fake = sides.model.replaced(values)
            return (
                self._critic.apply(critic, data, args, kwargs),
                self._critic.apply(critic, fake, args, kwargs),
            )

        (data_logits, model_logits), pull_back = jax.vjp(judge, frozen["critic"], frozen["model"])
        logits = Logits(data_logits, model_logits, sides.data_weights, sides.model_weights)
        logits = lax.stop_gradient(logits)
        pull_data, pull_model, push = self._slopes(logits)
        if self._is_one_pass(frozen["critic"], sides.model, args, kwargs):
            # The critic's own backward pass runs on to its input, where it is rescaled.
            pull_model = _away_from_zero(pull_model)
            critic_grads, at_input = pull_back((pull_data, pull_model))
            # One after the other: their product may overflow where the result does not.
            for factor in (jnp.where(push == 0, 0.0, 1 / pull_model), push):
                at_input = {
                    name: grad * factor.reshape(*factor.shape, *[1] * (grad.ndim - factor.ndim))
                    for name, grad in at_input.items()
                }
            model_grads = at_input
        else:
            critic_grads, _ = pull_back((pull_data, pull_model))
            _, model_grads = pull_back((jnp.zeros_like(pull_data), push))
        critic_grads = self._add_penalty(
            penalty_key, critic_grads, frozen, data, sides, args, kwargs
        )
        grads = {"critic": critic_grads, "model": model_grads}
        loss = with_gradients(self._value(logits), learned, grads)
        loss = self._watch(loss, random.fold_in(penalty_key, 2), logits)
        return loss, sides.mutable, logits

    def _add_penalty(
        self,
        rng_key: jax.Array,
        grads: Any,
        frozen: Any,
        data: SiteValues,
        sides: TwoSides,
        args: Any,
        kwargs: Any,
    ) -> Any:
        if self.regularizer is None:
            return grads
        fake = sides.model.replaced(frozen["model"])
        weights = lax.stop_gradient(sides.data_weights)

        warn_of_coupling(self._critic, frozen["critic"], data, args, kwargs)

        def judge(critic: Any, values: SiteValues) -> jax.Array:
            return self._critic.apply(critic, values, args, kwargs)

        def penalty(critic: Any) -> jax.Array:
            return penalty_in_turn(rng_key, self.regularizer, judge, critic, data, fake, weights)

        return jax.tree.map(jnp.add, grads, jax.grad(penalty)(frozen["critic"]))

    def _is_one_pass(self, params: Any, values: SiteValues, args: Any, kwargs: Any) -> bool:
        """Whether one pass gives the generator's gradient too; decided while a step is traced."""
        if self.update == "two_pass" or is_concrete(*values.values()):  # nobody differentiates
            return False
        if are_apart(lambda values: self._critic.apply(params, values, args, kwargs), values):
            return True
        # What nothing proves may still be so, on the user's word and after a look.
        if self.update == "one_pass" and (
            self._critic.coupled or others_move(self._critic.apply, params, values, args, kwargs)
        ):
            raise ValueError(players.coupled_critic())
        return self.update == "one_pass"

    def _slopes(self, logits: Logits) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Slopes of the critic's loss at both sides' logits, and of the generator's at its own."""
        weights = logits[2:]

        def critic(data: jax.Array, model: jax.Array) -> jax.Array:
            return self._critic_loss(Logits(data, model, *weights))

        def generator(model: jax.Array) -> jax.Array:
            return weighted_mean(self._generator_loss(model), logits.weights_q)

        pull_data, pull_model = jax.grad(critic, (0, 1))(logits.p, logits.q)
        return pull_data, pull_model, jax.grad(generator)(logits.q)


def _away_from_zero(pull: jax.Array) -> jax.Array:
    """Slopes that the generator's can be divided by; the critic does not feel the difference."""
    floor = _NEGLIGIBLE / max(1, pull.size)
    return jnp.where(jnp.abs(pull) < floor, floor, pull)
