# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Base class of adversarial losses: exact gradients of both players, without interference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import lax, random
from numpyro.handlers import block

from numpyro_spread._typing import RngKey
from numpyro_spread.infer._critic import penalty_in_turn, warn_of_coupling
from numpyro_spread.infer._gradients import with_gradients
from numpyro_spread.infer._moving import declare_moves, state_sites
from numpyro_spread.infer._noise import as_noise, declare_noise, kernels_now, kernels_of
from numpyro_spread.infer._registration import Loss, Registered, declare_params, example_of
from numpyro_spread.infer._two_sides import TwoSides, draw_sides, no_guide
from numpyro_spread.noise.base import is_concrete
from numpyro_spread.ratio._slopes import are_apart, others_move
from numpyro_spread.ratio.adapters import SiteValues
from numpyro_spread.ratio.binding import bind
from numpyro_spread.ratio.regularizers import check_regularizer
from spread_core.logits import Logits
from spread_core.losses.critic_loss import CriticLossShared
from spread_core.messages import players, spreading
from spread_core.noise.learnable import learned_of
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
            declare_noise(self.noise)
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
        # Of the noise alone depends what happens to the data.
        seen = {"model": dict(sides.model)}
        if learned_of(self.noise):
            seen["data"] = dict(sides.data)
        learned = {"critic": params[f"{self.name}$params"], "seen": seen}
        # All players see the others, and the data, as constants.
        frozen = lax.stop_gradient(learned)
        data = sides.data.replaced(lax.stop_gradient(dict(sides.data)))

        def judge(critic: Any, seen: dict[str, Any]) -> dict[str, jax.Array]:
            values = {"data": data, "model": sides.model}
            values |= {side: values[side].replaced(own) for side, own in seen.items()}
            return {
                side: self._critic.apply(critic, own, args, kwargs) for side, own in values.items()
            }

        both, pull_back = jax.vjp(judge, frozen["critic"], frozen["seen"])
        logits = Logits(both["data"], both["model"], sides.data_weights, sides.model_weights)
        logits = lax.stop_gradient(logits)
        pulls, pushes = self._slopes(logits)
        value = self._value(logits)
        if self.unroll:
            critic_grads, _ = pull_back(pulls)
            ahead_key = random.fold_in(penalty_key, 3)
            model_grads, is_finite = self._look_ahead(ahead_key, frozen, data, sides, args, kwargs)
            seen_grads = {"model": model_grads}
            # The value is that of the critic as it is: without this it would look right.
            value = jnp.where(is_finite, value, jnp.nan)
        elif self._is_one_pass(frozen["critic"], sides.model, args, kwargs):
            # The critic's own backward pass runs on to its input, where it is rescaled.
            pulls |= {side: _away_from_zero(pulls[side]) for side in seen}
            critic_grads, at_input = pull_back(pulls)
            seen_grads = {
                side: _rescaled(at_input[side], pulls[side], pushes[side]) for side in seen
            }
        else:
            critic_grads, _ = pull_back(pulls)
            _, seen_grads = pull_back(pushes)
        critic_grads = self._add_penalty(
            penalty_key, critic_grads, frozen, data, sides, args, kwargs
        )
        grads = {"critic": critic_grads, "seen": seen_grads}
        loss = with_gradients(value, learned, grads)
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
        fake = sides.model.replaced(frozen["seen"]["model"])
        weights = lax.stop_gradient((sides.data_weights, sides.model_weights))

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

    def _slopes(self, logits: Logits) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """
        Slopes at the logits of data and model: of the critic's loss, and of what the samples lower.

        That of the data is moved by learned noise only, of whose gradient the sign is turned later.
        """
        weights = logits[2:]

        def critic(both: dict[str, jax.Array]) -> jax.Array:
            return self._critic_loss(Logits(both["data"], both["model"], *weights))

        pulls = jax.grad(critic)({"data": logits.p, "model": logits.q})
        pushes = (self._pushes_ahead if learned_of(self.noise) else self._pushes)(logits)
        return pulls, dict(zip(("data", "model"), pushes, strict=True))

    def _pushes(self, logits: Logits) -> tuple[jax.Array, jax.Array]:
        """Slopes of what the generator minimises, at both sides' logits."""
        weights = logits[2:]

        def generator(data: jax.Array, model: jax.Array) -> jax.Array:
            return self._generator_mean(Logits(data, model, *weights))

        at_data, at_model = jax.grad(generator, (0, 1))(logits.p, logits.q)
        return at_data, at_model

    def _pushes_ahead(self, logits: Logits) -> tuple[jax.Array, jax.Array]:
        """
        Slopes of the divergence that the best critic knows: learned noise moves the data's logits
        too, and so does a critic that looks ahead, which follows the generator.
        """
        return self._pushes(logits)

    def _look_ahead(
        self,
        rng_key: jax.Array,
        frozen: Any,
        data: SiteValues,
        sides: TwoSides,
        args: Any,
        kwargs: Any,
    ) -> tuple[Any, jax.Array]:
        """
        Gradients of the generator at its draws, through steps of the critic that follow them.

        :return: the gradients; and whether the critic's logits are finite there.
        """
        weights = lax.stop_gradient((sides.data_weights, sides.model_weights))

        def ahead(values: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            draws = sides.model.replaced(values)

            def judge(critic: Any, values: SiteValues) -> jax.Array:
                return self._critic.apply(critic, values, args, kwargs)

            def loss(critic: Any, key: jax.Array) -> jax.Array:
                logits = Logits(judge(critic, data), judge(critic, draws), *weights)
                found = self._critic_loss(logits)
                if self.regularizer is not None:
                    judged = partial(judge, critic)
                    found += self.regularizer.between(key, judged, data, draws, weights)
                return jnp.asarray(found)

            def step(critic: Any, key: jax.Array) -> tuple[Any, None]:
                size, slopes = self.unroll_step_size, jax.grad(loss)(critic, key)
                return jax.tree.map(
                    lambda p, g: (p - size * g).astype(p.dtype), critic, slopes
                ), None

            critic, _ = lax.scan(step, frozen["critic"], random.split(rng_key, self.unroll))
            return judge(critic, data), judge(critic, draws)

        both, pull_back = jax.vjp(ahead, frozen["seen"]["model"])
        logits = Logits(*lax.stop_gradient(both), *weights)
        (grads,) = pull_back(self._pushes_ahead(logits))
        return grads, jnp.isfinite(logits.p).all() & jnp.isfinite(logits.q).all()


def _rescaled(grads: dict[str, jax.Array], pull: jax.Array, push: jax.Array) -> Any:
    """Gradients in the values of sites, made from the critic's, sample by sample."""
    # One after the other: their product may overflow where the result does not.
    for factor in (jnp.where(push == 0, 0.0, 1 / pull), push):
        grads = {
            name: grad * factor.reshape(*factor.shape, *[1] * (grad.ndim - factor.ndim))
            for name, grad in grads.items()
        }
    return grads


def _away_from_zero(pull: jax.Array) -> jax.Array:
    """Slopes that the generator's can be divided by; the critic does not feel the difference."""
    floor = _NEGLIGIBLE / max(1, pull.size)
    return jnp.where(jnp.abs(pull) < floor, floor, pull)
