# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What PriorContrastELBO refuses, and what it says."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen
from numpyro import handlers
from numpyro.primitives import mutable as numpyro_mutable
from numpyro_contrast import (
    ALL,
    CRITIC,
    KNOWN,
    PARAMS,
    ZERO,
    Told,
    X,
    affine,
    guide,
    model,
    run,
    silent,
    two_model,
)

from numpyro_spread import GaussianNoise, PriorContrastELBO

EACH = {**PARAMS, CRITIC: {"z": KNOWN, "y": KNOWN}}


def gradient(loss, model=model, guide=guide, x=X, params=ALL):
    return jax.grad(lambda params: run(loss, model, guide, x, params))(params)


@pytest.mark.parametrize("name", ["num_particles", "num_moment_draws", "num_critic_draws"])
def test_counts_are_checked(name):
    least = 3 if name == "num_moment_draws" else 1
    PriorContrastELBO(ZERO, **{name: least})
    wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
    for value in (least - 1, 4.5):
        with pytest.raises(ValueError, match=f"{name} must be {wanted}, got {value}"):
            PriorContrastELBO(ZERO, **{name: value})


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"annealing must be a positive integer, got 0"):
        PriorContrastELBO(ZERO, annealing=0)
    with pytest.raises(TypeError, match=r"regularizer must be a Regularizer such as R1\(\)"):
        PriorContrastELBO(ZERO, regularizer=1.0)
    with pytest.raises(TypeError, match=r"head must be a module of .*-> \(loc, scale\)"):
        PriorContrastELBO(ZERO, head=lambda x: (x, 1.0))
    with pytest.raises(ValueError, match=r"head is the contrast of adaptive=True"):
        PriorContrastELBO(ZERO, adaptive=False, head=ZERO)
    for critic in (silent, {"z": silent}):
        with pytest.raises(TypeError, match=r"discriminator must be a module of flax linen"):
            PriorContrastELBO(critic)


def test_guide_has_to_be_registered():
    for head in (None, ZERO):
        with pytest.raises(ValueError, match=r"loss.register\(model, guide\)"):
            run(PriorContrastELBO(ZERO, head=head), params=PARAMS)
    with pytest.raises(ValueError, match=r"loss.register\(model, guide\)"):
        run(PriorContrastELBO(ZERO, head=ZERO), params=ALL)


# --- which critic for which site


def two_guide(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", affine(x, 1.0))
        numpyro.sample("y", affine(x, 1.0))


def test_every_implicit_site_has_a_critic_and_no_other():
    with pytest.raises(
        ValueError, match=r"guide site 'y' is an Impl.*discriminator=\{'y': \.\.\.\}"
    ):
        run(PriorContrastELBO({"z": ZERO}), two_model, two_guide, params=EACH)
    with pytest.raises(ValueError, match=r"critic for the site 'y', which is no Implicit.*\['z'\]"):
        run(PriorContrastELBO({"z": ZERO, "y": ZERO}), params=EACH)


def apart(what):
    """A guide whose two sites one critic cannot judge together."""

    def guide(x):
        mask, scale = jnp.asarray(x > 0), jnp.asarray(x + 3)
        with (
            numpyro.plate("data", len(x)),
            {
                "plates": lambda: handlers.mask(mask=True),
                "masks": lambda: handlers.mask(mask=mask),
                "scales": lambda: handlers.scale(scale=scale),
            }[what](),
        ):
            numpyro.sample("z", affine(x, 1.0))
        if what == "plates":
            numpyro.sample("y", affine(0.0, 1.0))
        else:
            with numpyro.plate("data", len(x)):
                numpyro.sample("y", affine(x, 1.0))

    return guide


@pytest.mark.parametrize("what", ["plates", "masks", "scales"])
def test_one_critic_judges_sites_of_the_same_plates_masks_and_scales(what):
    with pytest.raises(ValueError, match=rf"'z' and 'y' differ in their {what}.*'y': \.\.\.\}}"):
        run(PriorContrastELBO(ZERO), two_model, apart(what))


def test_masks_of_parts_of_an_event_are_refused():
    def inside(x):
        with numpyro.plate("data", 2):
            implicit = affine(x.reshape(2, 3), 1.0).expand((2, 3)).mask(jnp.ones((2, 3), bool))
            numpyro.sample("z", implicit.to_event(1))

    with pytest.raises(ValueError, match=r"guide site 'z': the mask is inside of to_event"):
        run(PriorContrastELBO(ZERO), guide=inside)


def test_a_scale_that_does_not_fit_is_refused():
    def scaled(x):
        with numpyro.plate("data", len(x)), handlers.scale(scale=jnp.ones(5)):
            numpyro.sample("z", affine(x, 1.0))

    with pytest.raises(ValueError, match=r"site 'z': a mask or scale of shape \(5,\)"):
        run(PriorContrastELBO(ZERO), guide=scaled)


def test_a_critic_has_one_logit_per_datum():
    with pytest.raises(ValueError, match=r"logits of shape \(6, 1\), expected the plates' batch"):
        run(PriorContrastELBO(Told(lambda values, x: values["z"][:, None])))


# --- priors


def implicit_model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", affine(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def learned_model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", affine(numpyro.param("mu", 0.3), 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def test_the_adaptive_contrast_needs_a_prior_density():
    with pytest.raises(NotImplementedError, match=r"site 'z': the model's prior has no density"):
        run(PriorContrastELBO(ZERO), implicit_model)
    assert jnp.isfinite(run(PriorContrastELBO(ZERO, adaptive=False), implicit_model))
    assert gradient(PriorContrastELBO(ZERO, adaptive=False), implicit_model)["m"] != 0


def test_a_prior_without_density_cannot_be_learned():
    loss = PriorContrastELBO(ZERO, adaptive=False)
    for critic_draws in (1, 5):
        loss = PriorContrastELBO(ZERO, adaptive=False, num_critic_draws=critic_draws)
        with pytest.raises(NotImplementedError, match=r"site 'z': the prior has no density but"):
            gradient(loss, learned_model)
    assert jnp.isfinite(run(loss, learned_model))  # nothing is learned in an evaluation


def test_the_plain_contrast_needs_a_prior():
    def other(x):
        with numpyro.plate("data", len(x)):
            u = numpyro.sample("u", affine(x, 1.0), infer={"is_auxiliary": True})
            numpyro.sample("z", dist.Normal(u, 1.0))

    with pytest.raises(ValueError, match=r"guide site 'u' is implicit but the model has no latent"):
        run(PriorContrastELBO(ZERO, adaptive=False), guide=other)
    assert jnp.isfinite(run(PriorContrastELBO(ZERO), guide=other))


def test_learned_noise_without_gradient_is_refused():
    from numpyro_spread import ImplicitDistribution

    def discrete(x):
        base = dist.Poisson(numpyro.param("m", 0.7))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", ImplicitDistribution(lambda n: n * 1.0, base, ()))

    with pytest.raises(NotImplementedError, match=r"latent site 'z': draws of Poisson are not"):
        gradient(PriorContrastELBO(ZERO), guide=discrete)


def test_collapsed_guides_are_found():
    for scale in (0.0, jnp.nan):

        def collapsed(x, scale=scale):
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", affine(x, scale))

        with pytest.raises(ValueError, match=r"guide site 'z': all draws for a datum are the"):
            run(PriorContrastELBO(ZERO), guide=collapsed)


# --- the head


class BadHead(linen.Module):
    kind: str

    @linen.compact
    def __call__(self, x):
        self.param("loc", linen.initializers.zeros, ())
        return {
            "shape": (x, jnp.ones(5)),
            "one": x,
            "key": {"y": (x, x)},
            "pair": (x, x),
            "negative": (x, -jnp.ones(6)),
        }[self.kind]


@pytest.mark.parametrize("kind", ["shape", "one", "key"])
def test_a_head_gives_location_and_scale(kind):
    params = {**ALL, "discriminator$head": {"loc": jnp.zeros(())}}
    with pytest.raises(
        ValueError, match=r"guide site 'z': head must return \(loc, scale\).*\(6,\)"
    ):
        run(PriorContrastELBO(ZERO, head=BadHead(kind)), params=params)


def test_a_scale_is_positive():
    params = {**ALL, "discriminator$head": {"loc": jnp.zeros(())}}
    with pytest.raises(ValueError, match=r"guide site 'z': head must return a positive scale"):
        run(PriorContrastELBO(ZERO, head=BadHead("negative")), params=params)


def test_a_head_tells_sites_apart():
    params = {**EACH, "discriminator$head": {"loc": jnp.zeros(())}}
    loss = PriorContrastELBO({"z": ZERO, "y": ZERO}, head=BadHead("pair"))
    with pytest.raises(ValueError, match=r"site 'z': head .*one pair for the sites \['y', 'z'"):
        run(loss, two_model, two_guide, params=params)


# --- state and noise


def test_mutable_state_of_the_user_takes_one_particle():
    def counting(x):
        numpyro_mutable("count", jnp.zeros(()))
        guide(x)

    params = {**ALL, "count": jnp.zeros(())}
    with pytest.raises(NotImplementedError, match=r"mutable state, and num_particles=2"):
        run(PriorContrastELBO(ZERO, num_particles=2), guide=counting, params=params)
    assert jnp.isfinite(run(PriorContrastELBO(ZERO), guide=counting, params=params))


def delta_model(x, y=None):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Delta(z), obs=x)


def test_noise_is_checked_as_by_the_spread_elbo():
    other = {"z": GaussianNoise(0.3)}
    with pytest.raises(ValueError, match=r"noise names the site 'z', which the model does not obs"):
        run(PriorContrastELBO(ZERO, other, data={"z": "x"}), lambda x: model(x))
    loss = PriorContrastELBO(ZERO, {"x": GaussianNoise(0.3)})
    with pytest.raises(ValueError, match=r"site 'x': the model observes something other than"):
        run(loss, lambda x: delta_model(2 * x))
    with pytest.raises(ValueError, match=r"site 'x': .* contains NaN or inf"):
        run(loss, delta_model, x=X.at[0].set(jnp.nan))
