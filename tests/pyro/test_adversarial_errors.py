# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the adversarial losses refuse in Pyro, in which words, and that nothing is left behind."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn

from pyro_spread import (
    KL,
    R1,
    AdversarialDivergence,
    GaussianNoise,
    GradientPenalty,
    JSPi,
    TotalVariation,
    WassersteinCritic,
    concat_sites,
    two_player,
)

X = torch.linspace(-1.0, 2.0, 6)


def guide(*args):
    pass


def critic(*names):
    return concat_sites(nn.Linear(max(1, len(names)), 1), *names or "x")


def model(x, likelihood=None):
    w = pyro.param("w", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0) if likelihood is None else likelihood(w), obs=x)


def run(model, *args, guide=guide, net=None, **options):
    loss = AdversarialDivergence(net or critic(), **options)
    sgd = pyro.optim.SGD({"lr": 0.1}), pyro.optim.SGD({"lr": 0.1})
    svi = SVI(model, loss.register(model, guide), two_player(*sgd), loss)
    return svi.step(*args)


# --- constructors

ARGUMENTS = {
    "critic": ({"discriminator": lambda v: v["x"]}, TypeError, "discriminator must be a torch.nn"),
    "pyro module": ({"discriminator": PyroModule()}, TypeError, "is a PyroModule"),
    "pyro module inside": (
        {"discriminator": concat_sites(PyroModule[nn.Linear](1, 1), "x")},
        TypeError,
        "registered twice",
    ),
    "divergence": ({"divergence": 0.5}, TypeError, r"divergence must be a Divergence .* got 0\.5"),
    "divergence class": ({"divergence": KL}, TypeError, "divergence must be a Divergence such as"),
    "generator": (
        {"generator": "saturating"},
        ValueError,
        r"generator must be one of \['divergence', 'non_saturating'\], got 'saturating'",
    ),
    "no gradient": ({"divergence": TotalVariation()}, NotImplementedError, "TotalVariation"),
    "update": ({"update": "both"}, ValueError, r"update must be one of .* got 'both'"),
    "smoothing": ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \[0, 1\)"),
    "negative smoothing": ({"label_smoothing": -0.1}, ValueError, "label_smoothing must be"),
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


def test_pi_of_a_divergence_of_ones_own():
    class Odd(KL):
        pi = 1.0

    with pytest.raises(ValueError, match=r"pi is the share of data .* \(0, 1\), got 1\.0"):
        AdversarialDivergence(critic(), Odd())


def test_total_variation_may_be_reported():
    run(model, X, divergence=TotalVariation(), generator="non_saturating")


def test_wasserstein_arguments():
    for weight in (-1.0, math.nan):
        with pytest.raises(ValueError, match="gradient_penalty must be zero or positive, got"):
            WassersteinCritic(critic(), weight)


def test_helpers():
    with pytest.raises(TypeError, match=r"concat_sites\(net, 'x'\)"):
        concat_sites(3, "x")
    with pytest.raises(TypeError, match="concat_sites: names must be strings, got 3"):
        concat_sites(nn.Linear(1, 1), 3)
    for make in (R1, GradientPenalty):
        with pytest.raises(ValueError, match="must be positive, got 0"):
            make(0)
        with pytest.raises(ValueError, match="every must be a positive integer, got 0"):
            make(1.0, every=0)


# --- models and guides


def _two_plates(x):
    with pyro.plate("rows", 6):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
    with pyro.plate("others", 4):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(4))


def _factor(x):
    model(x)
    pyro.factor("penalty", torch.tensor(1.0))


def _nothing(x):
    pyro.sample("z", dist.Normal(pyro.param("w", torch.tensor(0.5)), 1.0))


def _learned_latent(x):
    p = pyro.param("p", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(p))
        pyro.sample("x", dist.Normal(c, 1.0), obs=x)


def _local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _masked(x):
    with poutine.mask(mask=torch.zeros(6, dtype=torch.bool)):
        model(x)


def _mask_of_another_shape(x):
    with poutine.mask(mask=torch.ones(2, 6, dtype=torch.bool)):
        model(x)


def _scale_of_another_shape(x):
    with pyro.plate("data", 6), poutine.scale(scale=torch.ones(4, 6)):
        pyro.sample("x", dist.Normal(pyro.param("w", torch.tensor(0.5)), 1.0), obs=x)


LEARNED = torch.tensor(0.3, requires_grad=True)
MODELS = {
    "no data": (_nothing, {}, ValueError, "observes no site, so there are no data"),
    "two plates": (
        _two_plates,
        {},
        ValueError,
        r"'x' and 'y' have batch shapes \(6,\) and \(4,\), which end in different plates",
    ),
    "factor": (_factor, {}, ValueError, "site 'penalty' is a factor"),
    "Bernoulli": (
        lambda x: model((x > 0).float(), dist.Bernoulli),
        {},
        NotImplementedError,
        "site 'x': draws of Bernoulli are discrete or not reparametrised.*relaxation",
    ),
    "mixture": (
        lambda x: model(
            x,
            lambda w: dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2)), dist.Normal(w * torch.ones(2), 1.0)
            ),
        ),
        {},
        NotImplementedError,
        "site 'x': draws of MixtureSameFamily",
    ),
    "learned latent": (
        _learned_latent,
        {},
        NotImplementedError,
        "latent site 'c': draws of Bernoulli .* parameters are being learned",
    ),
    "local guide": (
        _local,
        {"guide": AutoNormal(_local)},
        ValueError,
        r"guide site 'z' stands in the plate\(s\) \['data'\] of the data.*empty guide",
    ),
    "masked": (_masked, {}, ValueError, "every datum is masked out or has weight zero"),
    "mask misfit": (
        _mask_of_another_shape,
        {},
        ValueError,
        r"site 'x': a mask or scale of shape \(2, 6\) does not fit the value of shape \(6,\)",
    ),
    "scale misfit": (
        _scale_of_another_shape,
        {},
        ValueError,
        r"site 'x': a mask or scale of shape \(4, 6\) does not fit the value of shape \(6,\)",
    ),
    "wrong event shape": (
        lambda x: model(x, lambda w: dist.Normal(w * torch.ones(3), 1.0).to_event(1)),
        {},
        ValueError,
        "site 'x'",
    ),
    "noise at no site": (
        model,
        {"noise": {"y": GaussianNoise(0.1)}},
        ValueError,
        "'y'.*'x'",
    ),
    "noise at a latent": (
        _local,
        {"noise": {"z": GaussianNoise(0.1)}},
        ValueError,
        "'z'.*'x'",
    ),
    "learned noise": (
        model,
        {"noise": {"x": GaussianNoise(LEARNED)}},
        ValueError,
        "site 'x': the noise kernel has learnable parameters",
    ),
    "noise call": (
        model,
        {"noise": lambda x: {"x": 0.1}},
        TypeError,
        "'x'",
    ),
    "unknown name": (
        model,
        {"net": critic("label")},
        ValueError,
        r"'label' is neither a site that is compared \(they are \['x'\]\) nor an arg",
    ),
    "net of two outputs": (
        model,
        {"net": concat_sites(nn.Linear(1, 2), "x")},
        ValueError,
        r"concat_sites: the net returned shape \(6, 2\) for features of batch shape \(6,\)",
    ),
}


@pytest.mark.parametrize("mistake", MODELS)
def test_models(mistake):
    program, options, error, message = MODELS[mistake]
    with pytest.raises(error, match=message):
        run(program, X, **options)
    assert not list(pyro.get_param_store())


def test_arguments_that_do_not_fit_the_plate():
    def conditional(x, label):
        model(x)

    with pytest.raises(ValueError, match=r"value 'label' of shape \(4,\) does not begin with"):
        run(conditional, X, torch.ones(4), net=critic("x", "label"))


def test_the_gradient_penalty_needs_equal_numbers():
    def larger(x):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("draws", 8):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"site 'x': the gradient penalty.* \(6,\) and \(8,\)"):
        run(larger, X, regularizer=GradientPenalty())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_data_must_be_finite(bad):
    x = X.clone()
    x[2] = bad
    with pytest.raises(ValueError, match="site 'x': the observed data contain NaN or inf"):
        run(model, x)


def test_logits_must_have_the_batch_shape():
    class Wide(nn.Module):
        def forward(self, values, *args):
            return values["x"][:, None]

    with pytest.raises(ValueError, match=r"logits of shape \(6, 1\), expected .* shape \(6,\)"):
        run(model, X, net=Wide())


# --- the param store


def test_a_second_critic_under_the_same_name_is_refused():
    run(model, X)
    with pytest.raises(ValueError, match=r"another discriminator under the name 'discriminator'"):
        run(model, X)
    loss = AdversarialDivergence(critic(), JSPi(0.1), name="second")
    loss.loss_and_grads(model, guide, X)
    pyro.clear_param_store()
    run(model, X)


def test_a_loaded_critic_of_another_size_is_refused(tmp_path):
    run(model, X)
    pyro.get_param_store().save(str(tmp_path / "params.pt"))
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "params.pt"))
    with pytest.raises(ValueError, match="another discriminator"):
        run(model, X, net=critic("x", "x"))


def test_a_failing_step_leaves_params_as_they_are():
    net = critic()
    loss = AdversarialDivergence(net)
    loss.loss_and_grads(model, guide, X)
    before = {name: param.clone() for name, param in pyro.get_param_store().items()}
    with pytest.raises(ValueError, match="NaN"):
        loss.loss_and_grads(model, guide, X * math.nan)
    after = dict(pyro.get_param_store().items())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
