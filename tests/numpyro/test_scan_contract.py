# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A time series is the same model as a Python loop and as NumPyro's scan, for every loss.

Draws are made equal by distributions that are driven by given noise.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import infer
from numpyro_time_series import (
    Deterministic,
    Driven,
    Global,
    ImplicitStep,
    Masked,
    N,
    PlateOutside,
    StateSpace,
    Step,
    T,
    TeacherForced,
    TwoPlates,
    arguments,
    guide_of,
    model_of,
    no_guide,
)

from numpyro_spread import (
    KL,
    MMD,
    R1,
    AdversarialDivergence,
    DeterministicGenerator,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    JointContrastELBO,
    JSPi,
    PriorContrastELBO,
    ReverseKL,
    SemiImplicitELBO,
    SlicedWasserstein,
    SpreadELBO,
    SpreadNoise,
    WassersteinCritic,
    concat_sites,
)

PARAMS = {"a": 0.6, "w": 0.4}


@dataclasses.dataclass(frozen=True)
class StillNoise(SpreadNoise):
    """A kernel whose noise is always the same."""

    scale: float

    def conditional(self, x, event_dim):
        return Driven(x, self.scale, 0.5).to_event(event_dim)


class StillGaussian(GaussianNoise):
    """The same, with the exact spread of a Gaussian."""

    def draw(self, rng_key, x):
        return x + 0.1


def sites(name, scanned):
    return [name] if scanned else [f"{name}{t}" for t in range(T)]


class LatentStep(Step):
    """The guide's: with a density."""

    def __call__(self, name, previous, item):
        x, eps, _, _ = item
        with numpyro.plate("N", N):
            return numpyro.sample(name("z"), Driven(self.a * x + 0.3 * previous, 0.8, eps))


class Critic(eqx.Module):
    """Looks at the order of what it sees."""

    weights: jax.Array

    def __call__(self, features):
        return jnp.tanh(features @ self.weights[: features.shape[-1]])


class Head(eqx.Module):
    """One Gaussian for the whole series, or one for each of the loop's sites."""

    def __call__(self, *data):
        if len(data) == 1:
            return 0.3 * data[0].T, jnp.ones((N, T))
        return {f"z{t}": (0.3 * x, jnp.ones(N)) for t, x in enumerate(data)}


STILL = StillGaussian(0.3)
CRITIC = Critic(jnp.array([0.5, -1.0, 0.3, 0.8, -0.2, 1.1]))
HEAD = Head()
CRITIC_PARAMS = {
    "discriminator$params": eqx.filter(CRITIC, eqx.is_array),
    "discriminator$head": HEAD,
}


def noise_at(site, scanned, kernel=STILL):
    return dict.fromkeys(sites(site, scanned), kernel)


def critic_at(scanned, *names):
    return concat_sites(CRITIC, *(site for name in names for site in sites(name, scanned)))


COMPARING = {
    "mmd": lambda scanned: MMD(GaussianKernel([0.5, 2.0])),
    "mmd_noise": lambda scanned: MMD(
        GaussianKernel(1.0), noise=noise_at("x", scanned, GaussianNoise(0.3))
    ),
    "energy": lambda scanned: EnergyDistance(),
    "sliced": lambda scanned: SlicedWasserstein(20),
    "adversarial": lambda scanned: AdversarialDivergence(
        critic_at(scanned, "x"), JSPi(0.5), regularizer=R1(1.0)
    ),
    "wasserstein": lambda scanned: WassersteinCritic(critic_at(scanned, "x"), gradient_penalty=0.0),
}
SCORING = {
    "spread": lambda scanned: SpreadELBO(noise_at("x", scanned)),
    "spread_renyi": lambda scanned: SpreadELBO(noise_at("x", scanned), infer.RenyiELBO(alpha=0.5)),
    "spread_mean_field": lambda scanned: SpreadELBO(
        noise_at("x", scanned), infer.TraceMeanField_ELBO()
    ),
    "spread_graph": lambda scanned: SpreadELBO(noise_at("x", scanned), infer.TraceGraph_ELBO()),
    "prior_contrast": lambda scanned: PriorContrastELBO(critic_at(scanned, "z")),
    "joint_contrast": lambda scanned: JointContrastELBO(critic_at(scanned, "x", "z"), ReverseKL()),
    "joint_contrast_js": lambda scanned: JointContrastELBO(critic_at(scanned, "x", "z"), JSPi(0.3)),
    "posterior_estimation": lambda scanned: JointContrastELBO(divergence=KL()),
}
IMPLICIT = {
    "prior_contrast": lambda scanned: PriorContrastELBO(critic_at(scanned, "z"), head=HEAD),
    "prior_contrast_plain": lambda scanned: PriorContrastELBO(
        critic_at(scanned, "z"), adaptive=False, num_critic_draws=1
    ),
    "joint_contrast": lambda scanned: JointContrastELBO(critic_at(scanned, "x", "z")),
    "semi_implicit": lambda scanned: SemiImplicitELBO(
        noise_at("z", scanned, StillNoise(0.3)), num_mixture=3
    ),
}


def value_and_grads(make, model, guide, args, scanned):
    def loss(params):
        every = params | CRITIC_PARAMS
        return make(scanned).loss(jax.random.key(0), every, model, guide or no_guide, *args)

    value, grads = jax.jit(jax.value_and_grad(loss))(PARAMS)
    return {"value": value} | grads


def assert_same(make, model_kind, guide_kind):
    loop, scanned = (
        value_and_grads(
            make,
            model_of(model_kind, scanned),
            guide_kind and guide_of(guide_kind, scanned),
            arguments(model_kind, scanned),
            scanned,
        )
        for scanned in (False, True)
    )
    assert jnp.isfinite(loop["value"])
    assert any(loop[name] != 0 for name in PARAMS)
    for name, expected in loop.items():
        np.testing.assert_allclose(scanned[name], expected, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("loss", COMPARING)
def test_losses_that_compare_draws_see_whole_series(loss):
    assert_same(COMPARING[loss], TeacherForced, None)


@pytest.mark.parametrize(
    "kind", [StateSpace, Deterministic, Masked, Global, TwoPlates, PlateOutside]
)
@pytest.mark.filterwarnings("ignore:latent site 'b'")
def test_every_model_is_the_same_to_a_loss_that_compares_draws(kind):
    assert_same(COMPARING["energy"], kind, None)


@pytest.mark.parametrize("loss", SCORING)
def test_losses_with_a_density_guide(loss):
    kind = Deterministic if loss.startswith("spread") else StateSpace
    assert_same(SCORING[loss], kind, LatentStep)


@pytest.mark.parametrize("kind", [Deterministic, Masked])
def test_every_model_is_the_same_to_a_loss_that_scores(kind):
    assert_same(SCORING["joint_contrast" if kind is Masked else "spread"], kind, LatentStep)


@pytest.mark.parametrize("loss", IMPLICIT)
def test_losses_with_an_implicit_guide(loss):
    assert_same(IMPLICIT[loss], StateSpace, ImplicitStep)


class LearnedDiscrete(Step):
    def __call__(self, name, previous, item):
        with numpyro.plate("N", N):
            k = numpyro.sample(name("k"), dist.Bernoulli(self.a))
            numpyro.sample(name("x"), Driven(k + previous, 0.5, item[1]), obs=item[0])
        return previous


class Generator(Step):
    def __call__(self, name, previous, item):
        with numpyro.plate("N", N):
            z = numpyro.sample(name("z"), Driven(self.a * previous, 1.0, item[1]))
            numpyro.sample(name("x"), DeterministicGenerator(z), obs=item[0])
        return z


class RandomDelta(Step):
    def __call__(self, name, previous, item):
        with numpyro.plate("N", N):
            eps = jax.random.normal(numpyro.prng_key(), (N,))
            return numpyro.sample(name("z"), dist.Delta(self.a + 0.5 * eps + previous))


REFUSED = {
    "a learned discrete latent": (COMPARING["energy"], LearnedDiscrete, None, "not reparametrised"),
    "one of the joint contrast": (
        SCORING["joint_contrast"],
        LearnedDiscrete,
        LatentStep,
        "no local latent|not reparametrised|latent",
    ),
    "a Delta that is not spread": (
        lambda scanned: SpreadELBO(
            {"other": GaussianNoise(0.3)}, data={"other": sites("x", scanned)[0]}
        ),
        Deterministic,
        LatentStep,
        "Delta",
    ),
    "a random Delta": (
        SCORING["prior_contrast"],
        StateSpace,
        RandomDelta,
        "function of random noise",
    ),
    "a generator's density": (
        SCORING["prior_contrast"],
        Generator,
        LatentStep,
        "DeterministicGenerator has no likelihood",
    ),
    "a generator without noise": (
        SCORING["posterior_estimation"],
        StateSpace,
        ImplicitStep,
        "needs? a density|no density|without a density",
    ),
    "local latents of the guide": (COMPARING["energy"], StateSpace, LatentStep, "guide"),
    "noise at no site": (
        lambda scanned: MMD(GaussianKernel(1.0), noise={"y": GaussianNoise(0.3)}),
        StateSpace,
        None,
        "'y'",
    ),
    "a kernel missing": (
        lambda scanned: SemiImplicitELBO({"y": GaussianNoise(0.3)}),
        StateSpace,
        ImplicitStep,
        "kernel|noise",
    ),
}


@pytest.mark.parametrize("scanned", [False, True], ids=["loop", "scan"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_a_loop_refuses_a_scan_refuses(what, scanned):
    make, model_kind, guide_kind, words = REFUSED[what]
    with pytest.raises((ValueError, NotImplementedError), match=words):
        value_and_grads(
            make,
            model_of(model_kind, scanned),
            guide_kind and guide_of(guide_kind, scanned),
            arguments(model_kind, scanned),
            scanned,
        )
