# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""two_player: combine several optimisers, one for each player, into one for SVI."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from spread_core.messages import learned
from spread_core.messages import players as player_messages
from spread_core.noise.learned import is_noise
from spread_core.validation import check_count

_WANTED, _EXAMPLE = "an optax.GradientTransformation", "optax.adam(1e-3)"


class _AverageState(NamedTuple):
    """An average of params, and of how many steps."""

    steps: jax.Array
    generator_average: Any


def _averaging(decay: float) -> optax.GradientTransformation:
    """Updates as they are; the params that they lead to are averaged."""

    def init(params: Any) -> _AverageState:
        # Copies: the first state may be donated, which no buffer can be twice.
        return _AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params))

    def update(updates: Any, state: _AverageState, params: Any = None) -> tuple[Any, Any]:
        steps = state.steps + 1
        # The start weighs little: the average follows closely until it is long enough.
        kept = jnp.where(steps == 1, 0.0, jnp.minimum(decay, (1 + steps) / (10 + steps)))
        moved = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda old, new: (old + (1 - kept) * (new - old)).astype(old.dtype),
            state.generator_average,
            moved,
        )
        return updates, _AverageState(steps, average)

    return optax.GradientTransformation(init, update)


def two_player(
    generator: optax.GradientTransformation,
    discriminator: optax.GradientTransformation | None,
    discriminator_steps: int = 1,
    *,
    ema: float | None = None,
    name: str = "discriminator",
    noise: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """
    Combine two optimisers into one for SVI: one for the discriminator's params, one for all others.

    Each keeps its own learning rate, state, schedule and gradient clipping (``optax.chain``).

        >>> import optax
        >>> slow = optax.adam(1e-4, b1=0.5)
        >>> fast = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(4e-4))
        >>> optim = two_player(slow, fast, discriminator_steps=2)

    :param generator: an optax optimiser for all params except those of the others.
    :param discriminator: an optax optimiser for the discriminator's params; None, with ``noise``,
        for a loss without one.
    :param discriminator_steps: steps of the discriminator for each of the others, which move at
        every k-th step, with the gradient of that step; their schedules count their own steps.
    :param ema: decay per step of an exponential moving average of the generator's params, such as
        0.999, which averages out the oscillations of training; :func:`averaged_params` returns it.
    :param name: of the discriminator, as in the loss.
    :param noise: an optax optimiser for the params of learned noise, if the loss has any.
    :return: an optax optimiser for SVI.
    :raises TypeError: if a player is not an optax optimiser.
    :raises ValueError: if a number is out of its range; at ``init``, if a player has no params, or
        params no player.
    """
    if discriminator is None and noise is None:
        raise ValueError(learned.needs_two_players())
    roles = {"generator": generator}
    roles |= {} if discriminator is None else {"discriminator": discriminator}
    roles |= {} if noise is None else {"noise": noise}
    for role, optim in roles.items():
        if not isinstance(optim, optax.GradientTransformation):
            raise TypeError(player_messages.foreign_player(role, optim, _WANTED, _EXAMPLE))
        if (asked := _more_than_gradients(optim)) is not None:
            raise TypeError(
                f"two_player: {role} asks for more than SVI gives an optimiser, which is "
                f"gradients, params and the value of the loss ({asked}). A line search such as "
                "optax.lbfgs suits no loss that is new at every step: use for example "
                "optax.adam(1e-3)."
            )
    check_count("two_player: discriminator_steps", discriminator_steps)
    if ema is not None and not 0 < ema < 1:
        raise ValueError(player_messages.bad_range("two_player: ema", ema, "in (0, 1), or None"))
    if ema is not None:
        roles["generator"] = optax.chain(generator, _averaging(ema))
    k = int(discriminator_steps)
    for role in roles if k > 1 else ():
        if role != "discriminator":
            roles[role] = optax.conditionally_mask(
                roles[role], should_transform_fn=lambda step, **_: jnp.equal(step % k, k - 1)
            )

    def role_of(site: str) -> str:
        # A net that is called noise has these two of its own.
        if is_noise(site) and site not in ("noise$params", "noise$state"):
            return "noise"
        return "discriminator" if site.split("$")[0] == name else "generator"

    def players(params: dict[str, Any]) -> dict[str, str]:
        found = {site: role_of(site) for site in params}
        if "discriminator" not in roles:
            if "discriminator" in found.values():
                raise ValueError(learned.no_critic_to_move(name))
        elif "discriminator" not in found.values():
            raise ValueError(player_messages.unknown_player(name, params))
        noises = [site for site, role in found.items() if role == "noise"]
        if noises and "noise" not in roles:
            raise ValueError(learned.unmoved(noises))
        if not noises and "noise" in roles:
            raise ValueError(learned.no_player(params))
        return found

    return optax.partition(roles, players)


def _more_than_gradients(optim: optax.GradientTransformation) -> str | None:
    """
    Arguments that the update needs in addition to gradients, params and the value of the loss.
    """
    told = optax.with_extra_args_support(optim)

    def one_step(params: Any) -> Any:
        return told.update(params, told.init(params), params, value=jnp.zeros(()))

    try:
        jax.eval_shape(one_step, {"param": jnp.zeros(1)})
    except TypeError as error:
        text = str(error)
        return text if "missing" in text and "argument" in text else None
    except Exception:  # it may know its params by name
        return None
    return None


def averaged_params(svi: SVI, svi_state: SVIState) -> dict[str, Any]:
    """
    The averages kept by ``ema`` of the params of model and guide, together with the critic's
    params.

        >>> import jax, numpyro, numpyro.distributions as dist, optax
        >>> import flax.linen as nn
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import AdversarialDivergence, concat_sites
        >>> def model(x):
        ...     w = numpyro.param("w", 0.0)
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> optim = two_player(optax.adam(1e-2), optax.adam(1e-2), ema=0.999)
        >>> loss = AdversarialDivergence(concat_sites(nn.Dense(1)))
        >>> svi = SVI(model, loss.register(model, lambda x: None), optim, loss)
        >>> result = svi.run(jax.random.key(0), 3, jnp.ones(8), progress_bar=False)
        >>> averaged = averaged_params(svi, result.state)["w"]

    :param svi: an SVI whose optimiser is a :func:`two_player` with ``ema``.
    :param svi_state: its state.
    :return: constrained params, as ``svi.get_params`` returns those of the last step.
    :raises ValueError: if it keeps no average.
    """
    last = svi.optim.get_params(svi_state.optim_state)
    averages = optax.tree.get_all_with_path(svi_state.optim_state, "generator_average")
    if not averages:
        raise ValueError(player_messages.no_average())
    ((_, average),) = averages
    # The critic's params stand in it as masked nodes.
    kept = {
        name: value if _is_masked(average[name]) else average[name] for name, value in last.items()
    }
    return svi.constrain_fn(kept)


def _is_masked(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))
    return bool(leaves) and all(isinstance(leaf, optax.MaskedNode) for leaf in leaves)
