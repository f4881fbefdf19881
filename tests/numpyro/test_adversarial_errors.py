# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the adversarial losses refuse in NumPyro, and in which words."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen
from jax import random
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal

from numpyro_spread import (
    KL,
    R1,
    AdversarialDivergence,
    GaussianNoise,
    GradientPenalty,
    TotalVariation,
    WassersteinCritic,
    concat_sites,
    two_player,
)

X = np.linspace(-1.0, 2.0, 6, dtype=np.float32)


def guide(*args):
    pass


def critic(*names):
    return concat_sites(linen.Dense(1), *names or "x")


def model(x, likelihood=lambda w: dist.Normal(w, 1.0)):
    w = numpyro.param("w", 0.5)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", likelihood(w), obs=x)


def start(model, *args, guide=guide, net=None, register=True, **options):
    loss = AdversarialDivergence(net or critic(), **options)
    optim = two_player(optax.sgd(0.1), optax.sgd(0.1))
    svi = SVI(model, loss.register(model, guide) if register else guide, optim, loss)
    return svi, svi.init(random.key(0), *args)


def run(model, *args, **options):
    svi, state = start(model, *args, **options)
    return svi.update(state, *args)


ARGUMENTS = {
    "critic": ({"discriminator": lambda v: v["x"]}, TypeError, "discriminator must be a module of"),
    "divergence": ({"divergence": 0.5}, TypeError, r"divergence must be a Divergence .* got 0\.5"),
    "generator": (
        {"generator": "saturating"},
        ValueError,
        r"generator must be one of .*'sat",
    ),
    "no gradient": ({"divergence": TotalVariation()}, NotImplementedError, "TotalVariation"),
    "update": ({"update": "both"}, ValueError, r"update must be one of .* got 'both'"),
    "smoothing": ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \[0, 1\)"),
    "particles": ({"num_particles": 0}, ValueError, "num_particles must be a positive integer"),
    "half a particle": ({"num_particles": 1.5}, ValueError, "num_particles must be a positive"),
    "regularizer": ({"regularizer": 1.0}, TypeError, "regularizer must be a Regularizer such as"),
    "bare kernel": ({"noise": GaussianNoise(0.1)}, TypeError, "noise"),
}


@pytest.mark.parametrize("mistake", ARGUMENTS)
def test_arguments(mistake):
    wrong, error, message = ARGUMENTS[mistake]
    with pytest.raises(error, match=message):
        AdversarialDivergence(**{"discriminator": critic(), **wrong})


def test_other_arguments():
    class Odd(KL):
        pi = 1.0

    with pytest.raises(ValueError, match=r"pi is the share of data .* \(0, 1\), got 1\.0"):
        AdversarialDivergence(critic(), Odd())
    for weight in (-1.0, math.nan):
        with pytest.raises(ValueError, match="gradient_penalty must be zero or positive, got"):
            WassersteinCritic(critic(), weight)
    with pytest.raises(TypeError, match="concat_sites: names must be strings, got 3"):
        concat_sites(linen.Dense(1), 3)
    for make in (R1, GradientPenalty):
        with pytest.raises(ValueError, match="must be positive, got 0"):
            make(0)
        with pytest.raises(ValueError, match="every must be a positive integer, got 0"):
            make(1.0, every=0)


def _two_plates(x):
    with numpyro.plate("rows", 6):
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
    with numpyro.plate("others", 4):
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=jnp.zeros(4))


def _factor(x):
    model(x)
    numpyro.factor("penalty", jnp.asarray(1.0))


def _nothing(x):
    numpyro.sample("z", dist.Normal(numpyro.param("w", 0.5), 1.0))


def _learned_latent(x):
    p = numpyro.param("p", 0.5)
    with numpyro.plate("data", len(x)):
        c = numpyro.sample("c", dist.Bernoulli(p))
        numpyro.sample("x", dist.Normal(c, 1.0), obs=x)


def _local(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _scale_of_another_shape(x):
    with handlers.scale(scale=jnp.ones((4, 6))):
        model(x)


def _larger(x):
    w = numpyro.param("w", 0.5)
    with numpyro.plate("draws", 8):
        numpyro.sample("x", dist.Normal(w, 1.0), obs=x)


def _wide(x):
    model(x, lambda w: dist.Normal(w * jnp.ones(3), 1.0).to_event(1))


class Wide(linen.Module):
    def __call__(self, values, *args):
        return values["x"][:, None]


MODELS = {
    "no data": (_nothing, {}, ValueError, "observes no site, so there are no data"),
    "two plates": (_two_plates, {}, ValueError, r"'x' and 'y' have batch shapes \(6,\) and \(4,\)"),
    "factor": (_factor, {}, ValueError, "site 'penalty' is a factor"),
    "Bernoulli": (
        lambda x: model((x > 0).astype(jnp.float32), dist.Bernoulli),
        {},
        NotImplementedError,
        "site 'x': draws of Bernoulli.* are discrete or not reparametrised.*relaxation",
    ),
    "learned latent": (
        _learned_latent,
        {},
        NotImplementedError,
        "latent site 'c': draws of Bernoulli.* parameters are being learned",
    ),
    "local guide": (
        _local,
        {"guide": AutoNormal(handlers.block(_local, hide=["x"]))},
        ValueError,
        r"guide site 'z' stands in the plate\(s\) \['data'\] of the data.*empty guide",
    ),
    "scale misfit": (
        _scale_of_another_shape,
        {},
        ValueError,
        r"site 'x': a mask or scale of shape \(4, 6\) does not fit the value of shape \(6,\)",
    ),
    "wrong event shape": (_wide, {}, ValueError, "site 'x'"),
    "noise at no site": (model, {"noise": {"y": GaussianNoise(0.1)}}, ValueError, "'y'.*'x'"),
    "noise at a latent": (_local, {"noise": {"z": GaussianNoise(0.1)}}, ValueError, "'z'.*'x'"),
    "noise call": (model, {"noise": lambda x: {"x": 0.1}}, TypeError, "'x'"),
    "unequal numbers": (
        _larger,
        {"regularizer": GradientPenalty()},
        ValueError,
        r"site 'x': the gradient penalty.* \(6,\) and \(8,\)",
    ),
    "unknown name": (model, {"net": critic("label")}, ValueError, "'label' is neither a site"),
    "net of two outputs": (
        model,
        {"net": concat_sites(linen.Dense(2), "x")},
        ValueError,
        r"concat_sites: the net returned shape \(6, 2\) for features of batch shape \(6,\)",
    ),
    "logits": (model, {"net": Wide()}, ValueError, r"logits of shape \(6, 1\), expected"),
    "not registered": (
        model,
        {"register": False},
        ValueError,
        r"no param belongs to the discriminator 'discriminator'.*loss\.register\(model, guide\)",
    ),
}


@pytest.mark.parametrize("mistake", MODELS)
def test_models(mistake):
    program, options, error, message = MODELS[mistake]
    with pytest.raises(error, match=message):
        run(program, X, **options)


def test_forgetting_to_register_with_one_optimiser():
    loss = AdversarialDivergence(critic())
    svi = SVI(model, guide, optax.sgd(0.1), loss)
    state = svi.init(random.key(0), X)
    with pytest.raises(ValueError, match=r"'discriminator\$params' .* loss\.register\(model, gui"):
        svi.update(state, X)


def test_arguments_that_do_not_fit_the_plate():
    def conditional(x, label):
        model(x)

    with pytest.raises(ValueError, match=r"value 'label' of shape \(4,\) does not begin with"):
        run(conditional, X, jnp.ones(4), net=critic("x", "label"))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_data_must_be_finite(bad):
    x = np.where(np.arange(6) == 2, bad, X)
    with pytest.raises(ValueError, match="site 'x': the observed data contain NaN or inf"):
        run(model, x)


def _direct(model, **options):
    params = {"w": 0.5, "discriminator$params": {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}}
    loss = AdversarialDivergence(critic(), **options)
    return loss.loss(random.key(0), params, model, guide, X)


def test_everything_masked():
    def masked(x):
        model(x, lambda w: dist.Normal(w, 1.0).expand([6]).mask(jnp.zeros(6, bool)))

    with pytest.raises(ValueError, match="every datum is masked out or has weight zero"):
        _direct(masked)


def test_learned_noise():
    def value(scale):
        return _direct(model, noise={"x": GaussianNoise(scale)})

    assert value(0.3) >= 0
    with pytest.raises(ValueError, match="site 'x': the noise kernel has learnable parameters"):
        jax.grad(value)(0.3)
