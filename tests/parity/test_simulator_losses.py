# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Which losses take a model that ends in a black box, and how the others refuse it."""

import functools

import every
import jax
import numpy as np
import numpyro
import optax
import pyro
import pytest
from twins import NumPyro, Pyro, in_both, no_guide

NUM = 50


def settled(rng, z):
    return z + 0.5 * rng.normal(size=z.shape)


def failing(rng, z):
    return np.where(z < -1, np.nan, settled(rng, z))


def broken(rng, z):
    raise ZeroDivisionError("the mesh has no cells")


def simulates(b, x, fn=settled, learned=False):
    """A latent z for each datum, and x from a black box, after a param or not."""
    shift = b.param("shift", 0.5) if learned else 0.0
    with b.plate("data", len(x)):
        z = b.sample("z", b.dist.Normal(b.np.zeros(()), 1.0))
        b.sample("x", b.package.Simulator(fn, z + shift, event_shape=()), obs=x)


def latent(b, x, learned):
    """A latent w from a black box, and x with a density."""
    shift = b.param("shift", 0.5) if learned else b.np.zeros(())
    with b.plate("data", len(x)):
        z = b.sample("z", b.dist.Normal(b.np.zeros(()), 1.0))
        w = b.sample("w", b.package.Simulator(settled, z + shift, event_shape=()))
        b.sample("x", b.dist.Normal(w, 1.0), obs=x)


def normal_guide(b, x):
    m = b.param("m", 0.1)
    with b.plate("data", len(x)):
        b.sample("z", b.dist.Normal(m * x, 1.0))


def implicit_guide(b, x):
    m = b.param("m", 0.1)
    noise = b.dist.Normal(b.np.zeros(()), 1.0)
    with b.plate("data", len(x)):
        fn = b.partial(lambda m, eps: m + eps, m)
        b.sample("z", b.package.ImplicitDistribution(fn, noise, ()))


GUIDES = {"empty": lambda b, x: None, "normal": normal_guide, "implicit": implicit_guide}


def critic(b, *names):
    mlp = b.package.ratio.MLPCritic
    return b.package.concat_sites(b.pick(lambda: mlp(hidden=[4]), lambda: mlp([4]))(), *names)


def step(b, loss, model, guide=no_guide, steps=1, num=NUM, compiled=False):
    """Steps of SVI: params that are numbers, and the last loss."""
    model, guide = functools.partial(model, b), functools.partial(guide, b)
    x = b.np.linspace(-1.0, 1.0, num)
    if b is Pyro:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        optim = pyro.optim.Adam({"lr": 0.05})
        svi = pyro.infer.SVI(model, loss.register(model, guide), optim, loss)
        value = [svi.step(x) for _ in range(steps)][-1]
        return {n: v.item() for n, v in pyro.get_param_store().items() if v.dim() == 0}, value
    svi = numpyro.infer.SVI(model, loss.register(model, guide), optax.adam(0.05), loss)
    if compiled:
        result = svi.run(jax.random.key(0), steps, x, progress_bar=False)
        return result.params, float(result.losses[-1])
    state = svi.init(jax.random.key(0), x)
    for _ in range(steps):
        state, value = svi.update(state, x)
    return svi.get_params(state), float(value)


LOSSES = every.LOSSES | every.WITHOUT_NOISE | every.WITH_NOISE


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].guide == "empty"])
@pytest.mark.parametrize("learned", [False, True])
@in_both
def test_losses_that_train_the_model_through_its_draws_refuse(b, name, learned):
    loss = LOSSES[name].make(b.package, functools.partial(critic, b))
    model = functools.partial(simulates, learned=learned)
    with pytest.raises(NotImplementedError) as caught:
        step(b, loss, model)
    for part in ("site 'x': Simulator: no gradient passes", "amortize", "ImplicitDistribution"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith("joint")])
@in_both
def test_joint_contrasts_train_a_guide(b, name):
    loss = LOSSES[name].make(b.package, functools.partial(critic, b))
    params, value = step(b, loss, simulates, GUIDES[LOSSES[name].guide], steps=3)
    assert np.isfinite(value)
    assert params["m"] != pytest.approx(0.1)


@pytest.mark.parametrize("name", [n for n in LOSSES if n.startswith("joint") and n != "joint KL"])
@in_both
def test_joint_contrasts_refuse_to_train_the_model(b, name):
    loss = LOSSES[name].make(b.package, functools.partial(critic, b))
    with pytest.raises(NotImplementedError, match="site 'x': Simulator: no gradient passes"):
        step(b, loss, functools.partial(simulates, learned=True), GUIDES[LOSSES[name].guide])


@pytest.mark.parametrize(
    "name", [n for n in LOSSES if n.startswith(("prior", "adapt", "plain", "semi"))]
)
@in_both
def test_losses_that_score_the_data_refuse(b, name):
    loss = LOSSES[name].make(b.package, functools.partial(critic, b))
    with pytest.raises(NotImplementedError, match=r"Simulator") as caught:
        step(b, loss, simulates, implicit_guide)
    assert "JointContrastELBO" in str(caught.value)


@in_both
def test_stock_losses_refuse(b):
    class Stock(b.infer.Trace_ELBO):
        def register(self, model, guide):
            return guide

    with pytest.raises(NotImplementedError, match="Simulator can be sampled but has no density"):
        step(b, Stock(), simulates, normal_guide)


@in_both
def test_it_has_no_exact_spread(b):
    loss = b.package.SpreadELBO({"x": b.package.GaussianNoise(0.5)})
    with pytest.raises(NotImplementedError, match=r"site 'x'.*no exact spread of Simulator"):
        step(b, loss, simulates, normal_guide)


@in_both
def test_latents_from_a_black_box(b):
    loss = b.package.MMD(b.package.GaussianKernel(1.0))
    step(b, loss, functools.partial(latent, learned=False))
    with pytest.raises(NotImplementedError, match="site 'w': Simulator: no gradient passes"):
        step(b, loss, functools.partial(latent, learned=True))


def black_box_prior(b, x, learned=False):
    shift = b.param("shift", 0.5) if learned else b.np.zeros(())
    with b.plate("data", len(x)):
        z = b.sample("z", b.package.Simulator(settled, shift, event_shape=()))
        b.sample("x", b.dist.Normal(z, 1.0), obs=x)


@in_both
def test_a_prior_from_a_black_box(b):
    make = functools.partial(b.package.PriorContrastELBO, critic(b, "z", "x"))
    params, value = step(b, make(adaptive=False), black_box_prior, implicit_guide, steps=2)
    assert np.isfinite(value)
    assert params["m"] != pytest.approx(0.1)
    with pytest.raises(NotImplementedError, match="'z': the model's prior has no density"):
        step(b, make(), black_box_prior, implicit_guide)
    learned = functools.partial(black_box_prior, learned=True)
    # NumPyro refuses where the gradient is asked for, at the draw itself.
    message = b.pick("prior has no density but learned", "no gradient passes through a black box")
    with pytest.raises(NotImplementedError, match=message):
        step(b, make(adaptive=False), learned, implicit_guide)


@in_both
def test_a_guide_from_a_black_box_has_no_density(b):
    def guide(b, x):
        with b.plate("data", len(x)):
            b.sample("z", b.package.Simulator(settled, x, event_shape=()))

    loss = b.package.JointContrastELBO(divergence=b.package.KL())
    with pytest.raises(ValueError, match="guide site 'z' has no density"):
        step(b, loss, simulates, guide)


@in_both
def test_posterior_estimation_finds_the_posterior(b):
    """With z ~ N(0, 1) and x = z + .5 eps the posterior has mean .8 x and sd .447."""

    def guide(b, x):
        m, log_s = b.param("m", 0.1), b.param("log_s", 0.0)
        with b.plate("data", len(x)):
            b.sample("z", b.dist.Normal(m * x, b.np.exp(log_s)))

    loss = b.package.JointContrastELBO(divergence=b.package.KL())
    params, _ = step(b, loss, simulates, guide, steps=200, num=2000, compiled=True)
    assert params["m"] == pytest.approx(0.8, abs=0.05)
    assert params["log_s"] == pytest.approx(np.log(0.2**0.5), abs=0.1)


@pytest.mark.filterwarnings("ignore::pyro_spread.InvalidSimulationsWarning")
@pytest.mark.filterwarnings("ignore::numpyro_spread.InvalidSimulationsWarning")
@in_both
def test_failed_runs_are_named_or_left_out(b):
    model = functools.partial(simulates, fn=failing)
    make = functools.partial(b.package.JointContrastELBO, divergence=b.package.KL())
    with pytest.raises(ValueError, match=f"site 'x' of the generator: .* of {NUM}"):
        step(b, make(), model, normal_guide)
    _, value = step(b, make(exclude_invalid_x=True), model, normal_guide)
    assert np.isfinite(value)


@in_both
def test_errors_of_the_black_box_reach_the_user_out_of_svi(b):
    loss = b.package.JointContrastELBO(divergence=b.package.KL())
    with pytest.raises(ZeroDivisionError, match="the mesh has no cells"):
        step(b, loss, functools.partial(simulates, fn=broken), normal_guide)


def test_under_jit_jax_hands_over_the_text_of_an_error():
    loss = NumPyro.package.JointContrastELBO(divergence=NumPyro.package.KL())
    with pytest.raises(jax.errors.JaxRuntimeError, match="ZeroDivisionError: the mesh has no"):
        step(
            NumPyro, loss, functools.partial(simulates, fn=broken), normal_guide, compiled=True
        )  # fmt: skip
