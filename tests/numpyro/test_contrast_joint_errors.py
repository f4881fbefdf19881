# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What JointContrastELBO refuses, and what it says."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen
from jax import random
from numpyro.infer import SVI
from numpyro.primitives import mutable as numpyro_mutable
from numpyro_contrast import ALL, PARAMS, Told, X, affine, guide, silent, total
from numpyro_joint_contrast import dense_guide, global_guide, global_model, hierarchical, model, run

from numpyro_spread import (
    KL,
    Divergence,
    GaussianNoise,
    JointContrastELBO,
    JSPi,
    TotalVariation,
    concat_sites,
)


class Own(KL):
    reversed = Divergence.reversed


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"num_particles must be a positive integer, got 0"):
        JointContrastELBO(Told(silent), num_particles=0)
    with pytest.raises(TypeError, match=r"divergence must be a Divergence such as JSPi"):
        JointContrastELBO(Told(silent), "kl")
    with pytest.raises(NotImplementedError):
        JointContrastELBO(Told(silent), TotalVariation())
    with pytest.raises(TypeError, match=r"regularizer must be a Regularizer"):
        JointContrastELBO(Told(silent), regularizer=2.0)
    with pytest.raises(TypeError, match=r"discriminator must be a module"):
        JointContrastELBO(silent)
    with pytest.raises(ValueError, match=r"with ReverseKL needs a discriminator"):
        JointContrastELBO()
    with pytest.raises(ValueError, match=r"with logits\(\) needs a discriminator"):
        JointContrastELBO(divergence=KL()).logits(random.key(0), ALL, model, guide, X)
    with pytest.raises(ValueError, match=r"loss.register\(model, guide\)"):
        run(JointContrastELBO(Told(silent)), params=PARAMS)


def unobserved(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", affine(0.0, 1.0))


def with_factor(x):
    model(x)
    with numpyro.plate("data", len(x)):
        numpyro.factor("f", jnp.zeros(len(x)))


def implicit_global(x):
    w = numpyro.sample("w", affine(0.2, 0.4))
    with numpyro.plate("data", len(x), subsample_size=3):
        numpyro.sample("z", affine(w, 0.6))


def nothing(x):
    pass


def test_sites_that_cannot_be_contrasted_are_refused():
    loss, forward = JointContrastELBO(Told(silent)), JointContrastELBO(divergence=KL())
    for each in (loss, forward):
        with pytest.raises(ValueError, match=r"the model observes no site"):
            run(each, unobserved, dense_guide)
        with pytest.raises(ValueError, match=r"guide has no latent site of the model in"):
            run(each, model, nothing)
    with pytest.raises(ValueError, match=r"site 'f' is a factor"):
        run(loss, with_factor)
    with pytest.raises(ValueError, match=r"guide site 'w' is implicit but stands outside of the"):
        run(loss, global_model, implicit_global)
    with pytest.raises(ValueError, match=r"'w' stands outside .*ReverseKL\(\) can add.*not JSPi"):
        run(JointContrastELBO(Told(silent), JSPi(0.5)), global_model, global_guide)
    with pytest.raises(ValueError, match=r"guide site 'z' has no density, so KL\(\) needs a disc"):
        run(forward)
    with pytest.raises(ValueError, match=r"site 'x': the model simulates values of shape \(3,\)"):
        run(forward, global_model, global_guide)
    with pytest.raises(ValueError, match=r"noise names the site 'y', but the model has no"):
        run(JointContrastELBO(Told(silent), noise={"y": GaussianNoise(1.0)}, data={"y": "x"}))


def test_a_divergence_says_what_it_is_reversed():
    loss = JointContrastELBO(Told(total), Own())
    with pytest.raises(NotImplementedError, match=r"Own does not say .* `reversed`"):
        jax.grad(lambda p: run(loss, params=p))(ALL)
    # Only a model that is learned asks.
    grads = jax.grad(lambda m: run(loss, params={**ALL, "m": m}))(ALL["m"])
    assert grads != 0


def test_mutable_state_of_the_user_takes_one_particle():
    def counting(x):
        numpyro_mutable("count", jnp.zeros(()))
        guide(x)

    params = {**ALL, "count": jnp.zeros(())}
    with pytest.raises(NotImplementedError, match=r"mutable state, and num_particles=2"):
        run(JointContrastELBO(Told(silent), num_particles=2), guide=counting, params=params)
    assert jnp.isfinite(run(JointContrastELBO(Told(silent)), guide=counting, params=params))


def test_a_global_delta_of_noise_is_refused():
    def tempting(x):
        m, s = numpyro.param("m", 0.7), numpyro.param("s", 0.6)
        eps = numpyro.sample("eps", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        mu = numpyro.sample("mu", dist.Delta(m + s * eps))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", affine(mu * jnp.ones(len(x)), 1.0))

    loss = JointContrastELBO(concat_sites(linen.Dense(1), "x", "z", "mu"))
    guide = loss.register(hierarchical, tempting)
    svi = SVI(hierarchical, guide, optax.adam(1e-3), loss)
    state = svi.init(random.key(0), X)
    with pytest.raises(ValueError, match="'mu' is a Delta at a function of random noise"):
        svi.evaluate(state, X)
