# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
JointContrastELBO: compare pairs of data and latents of guide and model; neither needs a density.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import nn

from pyro_spread import _parents
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.divergences import KL, Divergence, ReverseKL
from pyro_spread.infer._critic import (
    Judge,
    check_critic,
    is_lazy,
    judge,
    penalise,
    register_critic,
)
from pyro_spread.infer._datum import are_whole, data_dims, parts_left_out
from pyro_spread.infer._handed import Handed, Watch
from pyro_spread.infer._invalid import Invalid
from pyro_spread.infer._joint_sides import JointSides, draw_joint, failed_simulations
from pyro_spread.infer._noise import Noise, draw_at
from pyro_spread.infer._own_draws import refuse_own_draws
from pyro_spread.infer._random_delta import refuse_random_deltas
from pyro_spread.infer._ranks import LossModule, ranks, share
from pyro_spread.infer._registration import Loss
from pyro_spread.infer._sites import combine_masks, is_implicit, is_latent, plain_name
from pyro_spread.infer._spreading import Spreading
from pyro_spread.infer._two_sides import is_compared
from pyro_spread.infer._watch import LagWatch
from pyro_spread.ratio._last_layer import refuse_bounded_logits
from pyro_spread.ratio.adapters import SiteValues
from pyro_spread.ratio.losses import log_ratio, logistic_loss, prior_log_odds, weighted_mean
from pyro_spread.ratio.regularizers import Regularizer, check_regularizer
from spread_core.arguments import get_argument, locate_data, replace_arguments
from spread_core.logits import Logits
from spread_core.loss_words import NOT_A_BOUND, LossWords, divergence_name
from spread_core.messages import contrasts, players, simulations
from spread_core.monitors import Monitor
from spread_core.nonfinite import NonFiniteError, Told
from spread_core.paths import Where
from spread_core.patterns import resolved
from spread_core.use_of_data import UseOfData
from spread_core.validation import check_count


class JointContrastELBO(Loss):
    r"""
    Divergence between the model's pairs (x, z) and the guide's, learned from draws of both.

    As in every loss, P is the side with the data and Q the model. P pairs data with the guide's
    draws, :math:`p_{data}(x)\, q(z \mid x)`. Q runs the model forward: it draws z' and then x'
    given z'. A critic learns :math:`\log P/Q` by distinguishing the pairs, so neither likelihood,
    prior nor guide needs a density. The divergence is that of the guide from the model, D(Q || P).
    Three are well known:

    - ``ReverseKL()``, ``KL[guide || model]``: :math:`\mathrm{KL}[P \| Q]`, minus the ELBO up to the
      entropy of the data: the likelihood-free variational inference of [1], the joint contrast of
      [2];
    - ``JSPi(pi)``: at 1/2 adversarially learned inference and BiGAN [3, 4];
    - ``KL()``, ``KL[model || guide]``: :math:`\mathrm{KL}[Q \| P]`. If the guide has a density,
      this is neural posterior estimation [5]: :math:`-E_Q \log q(z' \mid x')` is minimised
      directly, and no critic is needed and none trained.

    Latents in no plate of the data are global: they keep their densities, both sides share the
    guide's draws, and the critic may look them up by name (hierarchical implicit models [1],
    ``ReverseKL()`` only). A pair of the model is always x' with the z' that produced it.

    The reported value is the divergence, an **adversarial estimate and not a bound**, in nats: for
    ``ReverseKL()`` scaled by plates and summed over the data, with the globals' KL, as minus an
    ELBO is; otherwise the mean over the data. For neural posterior estimation it is the mean of
    :math:`-\log q(z' \mid x')` over the batch dims that all its sites share: with a global latent
    the data are one.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import KL, JointContrastELBO
        >>> net = torch.nn.Linear(1, 2)
        >>> def model(x):
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         simulated = z + 0.1 * torch.randn(z.shape)         # no density
        ...         pyro.sample("x", dist.Delta(simulated, event_dim=1), obs=x)
        >>> def guide(x):
        ...     pyro.module("net", net)
        ...     loc, log_scale = net(x).chunk(2, -1)
        ...     with pyro.plate("data", x.shape[0]):
        ...         pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
        >>> pyro.clear_param_store()
        >>> loss = JointContrastELBO(divergence=KL())
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)
        >>> svi.step(torch.zeros(100, 1)) > 0
        True

    **Data parallelism** (DDP around ``loss(model, guide)``): exact. Means are those over the whole
    batch, whatever the shards, if something counts on each; for ``ReverseKL()``, a sum over data,
    their plate has to say what they stand for: ``plate("data", N, subsample=x)`` on shards of equal
    size. Critics with batch normalisation are refused. With ``KL()`` and no critic only the guide
    learns: DDP needs ``find_unused_parameters=True``.

    **References**

    [1] `Hierarchical Implicit Models and Likelihood-Free Variational Inference`, Dustin Tran,
    Rajesh Ranganath, David M. Blei, https://arxiv.org/abs/1702.08896

    [2] `Variational Inference using Implicit Distributions`, Ferenc Huszar,
    https://arxiv.org/abs/1702.08235

    [3] `Adversarially Learned Inference`, Vincent Dumoulin et al., https://arxiv.org/abs/1606.00704

    [4] `Adversarial Feature Learning`, Jeff Donahue, Philipp Krähenbühl, Trevor Darrell,
    https://arxiv.org/abs/1605.09782

    [5] `Fast epsilon-free Inference of Simulation Models with Bayesian Conditional Density
    Estimation`, George Papamakarios, Iain Murray, https://arxiv.org/abs/1605.06376

    :param discriminator: a ``torch.nn.Module`` called as
        ``discriminator(values, *args, **kwargs)``, where ``values`` is a dict of data and local
        latents; it returns one logit for every pair, large for those of the guide. On the
        model's pairs ``args`` still are the data: look at ``values``. May be left out with ``KL()``
        and a guide with a density.
    :param divergence: D(model || guide), so that ``KL()`` is ``KL[model || guide]``;
        ``ReverseKL()`` by default. Its ``pi`` is the share of the model's pairs.
    :param noise: dict from observed site to noise kernel, or a callable that returns one. Data and
        the model's x' pass through it, with fresh draws; guide and critic see the noisy ones.
    :param data: dict from site to the name of the model argument that carries its data. Left out:
        the argument of the site's name, else the first.
    :param exclude_invalid_x: whether simulations that are NaN or inf are left out, for ``KL()``
        without a discriminator; otherwise they are an error. What is learned is the posterior given
        that the simulator succeeds, which for data that were observed, and so are finite, is the
        posterior itself. One :class:`InvalidSimulationsWarning` says how many there are. As ``sbi``
        calls it.
    :param regularizer: penalty on the discriminator's gradient, such as ``R1(1.0)``.
    :param num_particles: number of draws of guide and model per datum and step, one after another.
    :param name: of the discriminator in the param store.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range, or the discriminator is missing.
    :raises NotImplementedError: if the divergence has no gradient.
    """

    _remembers = ("_watch",)

    def __init__(
        self,
        discriminator: nn.Module | None = None,
        divergence: Divergence | None = None,
        noise: Noise | None = None,
        *,
        data: Mapping[str, Where] | None = None,
        regularizer: Regularizer | None = None,
        exclude_invalid_x: bool = False,
        num_particles: int = 1,
        name: str = "discriminator",
    ) -> None:
        check_count("num_particles", num_particles)
        super().__init__(num_particles=num_particles)
        divergence = ReverseKL() if divergence is None else divergence
        if not isinstance(divergence, Divergence):
            raise TypeError(players.no_divergence(divergence))
        divergence.generator_loss(torch.zeros(1))  # refuses here what has no gradient
        if discriminator is None and not isinstance(divergence, KL):
            raise ValueError(contrasts.joint_nothing_implicit(type(divergence).__name__))
        if exclude_invalid_x and (discriminator is not None or not isinstance(divergence, KL)):
            raise ValueError(simulations.exclude_without_forward())
        if discriminator is not None:
            check_critic(discriminator)
            refuse_bounded_logits(discriminator)
        check_regularizer(regularizer)
        self.discriminator = discriminator
        self.divergence = divergence
        self.regularizer = regularizer
        self.exclude_invalid_x = bool(exclude_invalid_x)
        self.name = name
        self._spreading = Spreading(noise, data if noise is not None else None)
        self.noise, self.data = self._spreading.noise, dict(data or {})
        self._watch = LagWatch(prior_log_odds(1 - divergence.pi))
        self._told = Told()

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        name = type(self).__name__
        if self.discriminator is None:
            reason = "The guide has a density: no critic is needed, and none trained."
            value = "minus the guide's log density at the model's latents"
            return LossWords(name, value, no_critic=reason)
        return LossWords(
            name,
            f"{divergence_name(self.divergence)} of the pairs (x, z)",
            caution=NOT_A_BOUND,
            is_divergence=True,
            sides=("guide's pairs", "model's pairs"),
            pi=1 - float(self.divergence.pi),
        )

    def __call__(self, model: nn.Module, guide: nn.Module) -> LossModule:
        """
        A complete ``nn.Module`` that computes the loss: for torch.optim, DDP and Lightning.

        Its parameters are those of model, guide and ``discriminator``.
        """
        module = super().__call__(model, guide)
        module.discriminator = self.discriminator
        return module

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """
        The adversarial estimate of the divergence in nats, at fresh draws; nothing is trained.

        :raises ValueError: if sites, plates, masks and noise are inconsistent; the message names
            the site and says what to do, and params are as before.
        """
        kept = (
            nullcontext() if self.discriminator is None else unchanged_buffers(self.discriminator)
        )
        with torch.no_grad(), kept:
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        return float(loss)

    def differentiable_loss(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Like :meth:`loss`, as a tensor whose ``backward`` gives every param its player's gradient.

        The gradients of the players belong to different functions, so second derivatives have no
        meaning.
        """
        one = self._forward_loss if self.discriminator is None else self._adversarial_loss
        self._register(model, guide, args, kwargs)
        losses = [one(model, guide, args, kwargs) for _ in range(self.num_particles)]
        valid = [loss for loss in losses if loss is not None]
        if not valid:
            raise NonFiniteError(simulations.all_left_out(len(losses)))
        return torch.stack(valid).mean()

    def logits(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Logits:
        """
        The critic's logits at fresh pairs of the guide and of the model.

        With held-out data it shows how far the critic can be trusted:
        ``critic_report(logits.p, logits.q)``. Nothing is trained.

        :param model: the model.
        :param guide: the guide.
        :return: a named tuple ``(p, q, weights_p, weights_q)``: P are the guide's pairs, Q the
            model's.
        :raises ValueError: if there is no discriminator.
        """
        if self.discriminator is None:
            raise ValueError(contrasts.joint_nothing_implicit("logits()"))
        with torch.no_grad():
            sides, args, kwargs = self._draw(model, guide, args, kwargs)
            with unchanged_buffers(self.discriminator):
                return self._logits(sides, args, kwargs)

    def monitors(self) -> list[Monitor]:
        """What watches the critic during training, and warns once."""
        return self._watch.monitors

    def look(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> tuple[float, dict[str, Any]]:
        """The value, and the critic's logits, of other draws."""
        value, _ = super().look(model, guide, *args, **kwargs)
        if self.discriminator is None:
            return value, {}
        return value, {"": self.logits(model, guide, *args, **kwargs)}

    def _draw(
        self, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[JointSides, tuple[Any, ...], dict[str, Any]]:
        """Pairs of both sides, and the arguments with the noisy data in them."""
        located = self._spreading.locate(model, args, kwargs) if self.noise else {}

        def draw(use: UseOfData) -> tuple[JointSides, Handed]:
            handed = self._spreading.hand(use, located, args, kwargs)
            watch = Watch(handed) if located else None
            own = handed.noise, handed.args, handed.kwargs
            return draw_joint(model, guide, *own, watch), handed

        sides, handed = self._spreading.settled(located, model, args, kwargs, draw)
        args, kwargs = handed.args, handed.kwargs
        if sides.global_sites and not isinstance(self.divergence, ReverseKL):
            name = type(self.divergence).__name__
            raise ValueError(contrasts.joint_global_divergence(sides.global_sites[0], name))
        if sides.global_sites:  # of the local ones no density is asked for
            refuse_random_deltas(guide, args, kwargs, sides.global_sites)
        return sides, args, kwargs

    def _judge(
        self, values: SiteValues, args: Any, kwargs: Any, frozen: bool = False
    ) -> torch.Tensor:
        assert self.discriminator is not None
        return judge(self.discriminator, values, args, kwargs, frozen)

    def _logits(self, sides: JointSides, args: Any, kwargs: Any) -> Logits:
        """Of constant pairs: what the critic is trained on."""
        detached = [_constant(side) for side in (sides.guide, sides.model)]
        guide, model = (self._judge(side, args, kwargs) for side in detached)
        return Logits(guide, model, sides.guide_weights, sides.model_weights)

    def _adversarial_loss(self, model: Any, guide: Any, args: Any, kwargs: Any) -> torch.Tensor:
        sides, args, kwargs = self._draw(model, guide, args, kwargs)
        assert self.discriminator is not None
        if is_lazy(self.discriminator):
            with torch.no_grad(), unchanged_buffers(self.discriminator):
                self._judge(sides.guide, args, kwargs)
        pi = self.divergence.pi  # share of the model's pairs, whose label is zero
        like = next(iter(sides.guide.values()))
        own = share(sides.guide_weights, like, sides.guide.batch_shape.numel())
        value = self._players_loss(sides, 1 - pi, own, args, kwargs)
        if not torch.is_grad_enabled():
            return value
        logits = self._logits(sides, args, kwargs)
        weights = logits.weights_p, logits.weights_q
        critic = own * logistic_loss(logits.p, logits.q, 1 - pi, *weights)
        judged = Judge(self.discriminator, args, kwargs)
        pairs = _constant(sides.guide), sides.model
        critic = penalise(critic, self.regularizer, judged, *pairs, weights[0], own)
        self._watch(logits)
        return value + (critic - critic.detach())

    def _players_loss(
        self, sides: JointSides, pi: float, own: torch.Tensor | float, args: Any, kwargs: Any
    ) -> Any:
        """The value, with the gradients of guide and model and none for the critic."""
        guide = log_ratio(self._judge(sides.guide, args, kwargs, frozen=True), pi)
        learned = any(value.requires_grad for value in sides.model.values())
        model_side = sides.model if learned else _constant(sides.model)
        model = log_ratio(self._judge(model_side, args, kwargs, frozen=True), pi)
        divergence, weights = self.divergence, (sides.guide_weights, sides.model_weights)
        if isinstance(divergence, ReverseKL):
            scaled = sides.scales if weights[0] is None else sides.scales * weights[0].sign()
            value = (scaled * guide).sum() - sides.log_globals
            total = scaled.sum()
        else:
            # The divergence takes the model first: its log-ratio is that of model to guide.
            with torch.no_grad():
                value = divergence.estimate(-model, -guide, weights[1], weights[0])
            loss = own * weighted_mean(divergence.generator_loss(-guide), weights[0])
            value, total = value + (loss - loss.detach()), torch.ones(())
        if learned:
            if (current := ranks()) is not None:
                total = current.sum(total.to(model)) / current.size
            loss = weighted_mean(divergence.reversed.generator_loss(model), weights[1])
            loss = total * own * loss
            value = value + (loss - loss.detach())
        return value

    def _forward_loss(self, model: Any, guide: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
        """
        Minus the log density of the guide at the model's latents, given their data.

        None if nothing is left of a run.
        """
        located = self._spreading.locate(model, args, kwargs) if self.noise else {}
        noise = self._spreading.hand(UseOfData(), located, args, kwargs).noise
        with torch.no_grad():
            trace = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
        observed = {n: s for n, s in trace.nodes.items() if is_compared(s)}
        if not observed:
            raise ValueError(players.nothing_observed())
        refuse_own_draws(model, observed, args, kwargs)
        noise, values = resolved(noise, observed), {}
        failed, axes = failed_simulations(trace.nodes, observed)
        invalid = failed if self.exclude_invalid_x else Invalid({}, {})
        if invalid.by_site:
            self._told(invalid.counts, invalid.total)
            if invalid.all:
                return None
        for site, key in locate_data(model, observed, args, kwargs, self.data).items():
            value, given = observed[site]["value"], get_argument(key, args, kwargs)
            if given is not None and np.shape(given) != value.shape:
                message = contrasts.joint_simulated_shape(site, value.shape, np.shape(given))
                raise ValueError(message)
            value = invalid.replaced(value, axes[site])
            values[key] = draw_at(site, noise[site], value) if site in noise else value
        args, kwargs = replace_arguments(values, args, kwargs)
        latents = {n: s["value"] for n, s in trace.nodes.items() if is_latent(s)}
        latents |= {n: invalid.replaced(latents[n], axes[n]) for n in axes.keys() & latents.keys()}
        with failed.blamed(may_exclude=True):
            scored_guide = poutine.condition(guide, data=latents)
            scored = poutine.trace(scored_guide).get_trace(*args, **kwargs)
        sites = {n: s for n, s in scored.nodes.items() if n in latents and s["type"] == "sample"}
        if not sites:
            drawn = [n for n, s in scored.nodes.items() if is_latent(s)]
            raise ValueError(contrasts.joint_no_latent(drawn))
        for name, site in sites.items():
            # At the model's latents a Delta is worth minus infinity.
            if is_implicit(site["fn"]) or plain_name(site["fn"]) == "Delta":
                raise ValueError(contrasts.joint_needs_density(name))
        with failed.blamed(may_exclude=True):
            scored.compute_log_prob(lambda name, site: name in sites)
        drawn_with = observed | {name: trace.nodes[name] for name in sites}
        one = not are_whole(drawn_with)
        dims = dict.fromkeys(drawn_with) if one else data_dims(drawn_with)
        if invalid.by_site:
            if one:
                return None  # data that share a draw are left out together
            for name, site in sites.items():
                _leave_out(site, invalid, dims[name])
        elif failed.by_site:  # a guide may have masked them
            for name, site in sites.items():
                seen = _weights(site) > 0
                failed.among(_of_data(seen, dims[name], failed.total)).refuse(may_exclude=True)
        counts = [max(1.0, _count(site, dims[name])) for name, site in sites.items()]
        if (current := ranks()) is not None:
            # One number for all data cancels in the mean over a shard: here it must not count.
            scales = [float(s["scale"]) if _is_number(s["scale"]) else 1.0 for s in sites.values()]
            own = torch.tensor([counts, scales], device=next(iter(values.values())).device)
            kept = own[0] / own[1]
            counts = (own[1] * current.sum(kept) / current.size).tolist()
        return -sum(s["log_prob_sum"] / n for s, n in zip(sites.values(), counts, strict=True))

    def _register(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Before they are used: params may come from a file."""
        if self.discriminator is None:
            return
        if is_lazy(self.discriminator):
            with torch.no_grad(), unchanged_buffers():
                sides, args, kwargs = self._draw(model, guide, args, kwargs)
                self._judge(sides.guide, args, kwargs)
        register_critic(self.name, self.discriminator)


def _constant(side: SiteValues) -> SiteValues:
    values = {name: value.detach() for name, value in side.items()}
    arguments = {
        n: a.detach() if isinstance(a, torch.Tensor) else a for n, a in side.arguments.items()
    }
    return SiteValues(values, side.batch_shape, arguments)


def _is_number(scale: Any) -> bool:
    return not isinstance(scale, torch.Tensor) or scale.dim() == 0


def _leave_out(site: Any, invalid: Invalid, dim: int | None) -> None:
    """Take the invalid data out of a scored site: of its log density, and of what it counts."""
    log_prob = site["log_prob"]
    dims = [] if dim is None else [dim]
    good = invalid.good(log_prob.dim(), dims, [log_prob.shape[d] for d in dims])
    site["log_prob"] = torch.where(torch.as_tensor(good), log_prob, torch.zeros_like(log_prob))
    site["log_prob_sum"] = site["log_prob"].sum()
    site["mask"] = combine_masks(site["mask"], good)


def _of_data(elements: torch.Tensor, dim: int | None, number: int) -> torch.Tensor:
    """Which data have any of the elements; all of them if no dim counts the data."""
    if dim is None:
        return elements.any().expand(number)
    return elements.movedim(dim, 0).reshape(elements.shape[dim], -1).any(-1).expand(number)


def _weights(site: Mapping[str, Any]) -> torch.Tensor:
    """How much each element of a scored site counts, with scale and mask."""
    mask, fn = site["mask"], site["fn"]
    while isinstance(fn, MaskedDistribution):
        mask, fn = combine_masks(mask, _parents.mask_of(fn)), fn.base_dist
    weights = torch.ones_like(site["log_prob"]) * site["scale"]
    return weights if mask is None else weights * mask


def _count(site: Mapping[str, Any], dim: int | None) -> float:
    """How many data the log density of a site stands for, with scale and mask."""
    weights = _weights(site)
    rest = [d for d in range(-weights.dim(), 0) if d != dim]
    whole = float((weights.amax(rest) if rest else weights).sum())
    return whole / parts_left_out(site)
