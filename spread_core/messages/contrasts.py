# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about the contrast ELBOs and the guides without a density that they train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spread_core.messages.general import shortened


def critic_for_unknown_site(site: str, implicit: Iterable[str]) -> str:
    return (
        f"discriminator has a critic for the site '{site}', which is no ImplicitDistribution in "
        f"the guide; those are {sorted(implicit)}. Only they need one."
    )


def missing_critic(site: str, critics: Iterable[str]) -> str:
    return (
        f"guide site '{site}' is an ImplicitDistribution without a critic: discriminator has those "
        f"of {sorted(critics)}. Add discriminator={{'{site}': ...}}."
    )


def critic_site_name(site: str) -> str:
    return (
        f"discriminator has a critic for the site '{site}', but torch.nn.ModuleDict, which holds "
        "them, allows no such name. Rename the site, or pass one critic for all implicit sites."
    )


def contrast_mismatch(what: str, first: str, second: str) -> str:
    return (
        f"guide sites '{first}' and '{second}' differ in their {what}, so that one critic cannot "
        f"judge them together. Give each its own: discriminator={{'{first}': ..., "
        f"'{second}': ...}}."
    )


def masked_event(site: str) -> str:
    return (
        f"guide site '{site}': the mask is inside of to_event, but an implicit distribution has no "
        "density that could be masked in part. Put .mask(...) outside."
    )


def not_broadcasting(site: str, shape: Sequence[int], error: object) -> str:
    return (
        f"guide site '{site}': several draws per datum are needed, but fn of its "
        f"ImplicitDistribution does not take noise with leading sample dimensions, here "
        f"{tuple(shape)} draws of the batch ({shortened(error)}). "
        "Let it broadcast what it closes over: features.expand(*eps.shape[:-1], -1) in "
        "PyTorch, jnp.broadcast_to in JAX."
    )


def implicit_prior(site: str) -> str:
    return (
        f"site '{site}': the model's prior has no density, which the adaptive contrast scores. Use "
        "adaptive=False, which contrasts guide and prior draws directly."
    )


def learned_implicit_prior(site: str) -> str:
    return (
        f"site '{site}': the prior has no density but learned parameters, whose gradient would "
        "silently be zero. Fix them, or give the prior a density."
    )


def no_prior_site(site: str) -> str:
    return (
        f"guide site '{site}' is implicit but the model has no latent site of that name, so there "
        "is no prior to contrast it with. Use adaptive=True, or name it like the latent."
    )


def random_delta(site: str) -> str:
    return (
        f"guide site '{site}' is a Delta at a function of random noise and of params. Its entropy "
        "would be left out: the guide collapses to a point and the loss reports false evidence. "
        "Write it as ImplicitDistribution(fn, noise, event_shape), or with a density such as "
        "Normal."
    )


def head_output(site: str, got: object, wanted: Sequence[int]) -> str:
    return (
        f"guide site '{site}': head must return (loc, scale) that broadcast to the shape "
        f"{tuple(wanted)} of its draws, or a dict from site to such pairs, got {got}. Of vectors "
        "scale may also be the Cholesky factors, of one more dimension."
    )


def head_scale(site: str) -> str:
    return (
        f"guide site '{site}': head must return a positive scale, or Cholesky factors with a "
        "positive diagonal. Let a net return softplus of its output there."
    )


def nameless_head() -> str:
    return (
        "head=concat_sites(net) has nothing to look up. Name what it needs, of the model's "
        "arguments and of what the guide computes: concat_sites(net, 'x')."
    )


def masked_factors(site: str) -> str:
    return (
        f"guide site '{site}': some steps of its series are masked, and the Cholesky factors of "
        "the head tie them to others. Let the head return standard deviations."
    )


def head_without_adaptive() -> str:
    return (
        "head is the contrast of adaptive=True, but adaptive=False contrasts with the prior. Leave "
        "one of them out."
    )


def false_evidence() -> str:
    return (
        "the critic tells the guide's draws from those of its contrast almost perfectly, so that "
        "its logit says little about how far apart they are: the reported value lags behind the "
        "KL divergence and may lie far above the evidence. Use adaptive=True, more critic steps "
        "(two_player(..., discriminator_steps=k)) or a larger learning rate of the critic, and "
        "look at loss.held_out_check(...)."
    )


def false_evidence_in_training(gap: float, error: float) -> str:
    return (
        f"the reported value lies {gap:.3g} ± {error:.2g} nats above what the guide's own draws "
        "allow, and may lie far above the evidence: the critic lags behind the guide. Use "
        "adaptive=True, more critic steps (two_player(..., discriminator_steps=k)), a larger "
        "learning rate of the critic or a larger critic, and look at loss.held_out_check(...)."
    )


def false_evidence_gap(gap: float, error: float) -> str:
    return (
        f"the critic of the training run overstates the ELBO by {gap:.3g} ± {error:.2g} nats "
        "against a fresh one fitted to fresh draws: the reported value is false evidence. Train "
        "the critic more: two_player(..., discriminator_steps=k), a larger learning rate, "
        "adaptive=True."
    )


def collapsed_guide(site: str) -> str:
    return (
        f"guide site '{site}': all draws for a datum are the same, or not finite, so that there is "
        "no Gaussian with their moments. Does fn use its noise? Start it near the prior, and lower "
        "the guide's learning rate."
    )


def joint_nothing_implicit(divergence: str) -> str:
    return (
        f"JointContrastELBO with {divergence} needs a discriminator: only KL() with a guide that "
        "has a density does without."
    )


def joint_needs_density(site: str) -> str:
    return (
        f"guide site '{site}' has no density, so KL() needs a discriminator: pass one, or give the "
        "guide a density."
    )


def joint_no_latent(guide_sites: Iterable[str]) -> str:
    return (
        "the guide has no latent site of the model in the plates of the data, so there is nothing "
        f"to contrast jointly with them; its sites are {sorted(guide_sites)}. Add one, or use "
        "AdversarialDivergence."
    )


def joint_simulated_shape(site: str, got: Sequence[int], wanted: Sequence[int]) -> str:
    return (
        f"site '{site}': the model simulates values of shape {tuple(got)}, but its data have "
        f"{tuple(wanted)}, so that the guide cannot be given the simulated ones. Subsample before "
        "the data go into SVI, not in a plate."
    )


def joint_global_implicit(site: str) -> str:
    return (
        f"guide site '{site}' is implicit but stands outside of the plates of the data, where "
        "there is one draw and no sample to compare. Give it a density, or use PriorContrastELBO."
    )


def joint_global_divergence(site: str, divergence: str) -> str:
    return (
        f"guide site '{site}' stands outside of the plates of the data and keeps its density, "
        f"which only ReverseKL() can add to the contrast, not {divergence}."
    )


def not_reversible(divergence: str) -> str:
    return (
        f"{divergence} does not say which divergence it is with its arguments exchanged, which is "
        "needed for the gradient of both joints. Define the property `reversed`."
    )
