# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose scale follows a schedule in steps of SVI, in both backends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pyro
import pytest
import torch
from flax import linen
from twins import NumPyro, Pyro, assert_refused_alike, in_both, no_guide

from pyro_spread import compiled
from spread_core.nonfinite import NonFiniteError

NUMBER = 10_000
X = np.zeros(NUMBER, np.float32)
CONSTANT = 0.5 + 0.5 * math.log(2 * math.pi)


class InPyro:
    """A run of SVI that can be saved."""

    def __init__(self, loss, model):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        self.svi = pyro.infer.SVI(model, no_guide, pyro.optim.Adam({"lr": 1e-9}), loss)
        self.x = torch.tensor(X)

    def step(self):
        return self.svi.step(self.x)

    def evaluate(self):
        return self.svi.evaluate_loss(self.x)

    def save(self, directory):
        Pyro.package.save_checkpoint(directory, self.svi, 1)

    def load(self, directory):
        Pyro.package.load_checkpoint(directory, self.svi, self.x)


class InNumPyro:
    """The same; steps are compiled."""

    def __init__(self, loss, model):
        guide = loss.register(model, no_guide)
        self.svi = numpyro.infer.SVI(model, guide, optax.sgd(1e-9), loss)
        self.x = jnp.asarray(X)
        self.state = self.svi.init(jax.random.key(0), self.x)
        self.update = jax.jit(self.svi.update)

    def step(self):
        self.state, loss = self.update(self.state, self.x)
        return float(loss)

    def evaluate(self):
        params = self.svi.get_params(self.state) | self.state.mutable_state
        svi = self.svi
        return float(svi.loss.loss(jax.random.key(1), params, svi.model, svi.guide, self.x))

    def save(self, directory):
        NumPyro.package.save_checkpoint(directory, self.svi, self.state, 1)

    def load(self, directory):
        self.state = NumPyro.package.load_checkpoint(directory, self.svi, self.state)[0]


RUNS = {Pyro: InPyro, NumPyro: InNumPyro}


def constant(b):
    """A model whose spread likelihood tells the scale of the noise."""

    def model(x):
        w = b.param("w", 0.0)
        with b.plate("data", NUMBER):
            b.sample("x", b.dist.Delta(w + b.np.zeros(NUMBER)), obs=x)

    return model


def scale_of(loss):
    """From log s + 1/2 log 2 pi + 1/2 per datum, whose standard deviation is sqrt(1/2)."""
    return math.exp(loss / NUMBER - CONSTANT)


def halving(b, **options):
    noise = b.package.annealed(b.package.GaussianNoise(2.0), lambda step: 0.5**step)
    return b.package.SpreadELBO({"x": noise}, **options)


# exp of four standard errors, sqrt(1/2) / 100 each.
NEAR = 0.03


@in_both
def test_the_scale_is_that_of_the_step_and_evaluation_does_not_count(b):
    run = RUNS[b](halving(b), constant(b))
    for step in range(3):
        assert scale_of(run.step()) == pytest.approx(2 * 0.5**step, rel=NEAR)
        for _ in range(2):
            assert scale_of(run.evaluate()) == pytest.approx(0.5**step, rel=NEAR)


@pytest.mark.slow
@in_both
def test_every_elbo_and_several_particles_count_one_step(b):
    for elbo in (
        b.infer.Trace_ELBO(num_particles=2),
        b.infer.RenyiELBO(num_particles=2),
        b.infer.TraceGraph_ELBO(),
    ):
        run = RUNS[b](halving(b, elbo=elbo), constant(b))
        assert [scale_of(run.step()) for _ in range(2)] == pytest.approx([2, 1], rel=NEAR)


@in_both
def test_a_checkpoint_has_the_step(b, tmp_path):
    run = RUNS[b](halving(b), constant(b))
    run.step(), run.step()
    run.save(tmp_path)
    other = RUNS[b](halving(b), constant(b))
    other.load(tmp_path)
    assert scale_of(other.step()) == pytest.approx(0.5, rel=NEAR)


@pytest.mark.parametrize("site", ["advance", "get_state", "set_state", "_kernels", "_recall"])
def test_a_site_may_have_any_name(site, tmp_path):
    def model(x):
        loc = pyro.param("w", torch.zeros(NUMBER))
        with pyro.plate("data", NUMBER):
            pyro.sample(site, pyro.distributions.Delta(loc), obs=x)

    noise = {site: Pyro.package.annealed(Pyro.package.GaussianNoise(2.0), lambda step: 1.0)}
    first, other = (Pyro.package.SpreadELBO(noise) for _ in range(2))
    run = InPyro(first, model)
    run.step()
    assert first.get_state() == {"_moves": {site: 1}}
    run.save(tmp_path)
    InPyro(other, model).load(tmp_path)
    assert other.get_state() == {"_moves": {site: 1}}


def test_compiled_steps_follow_the_schedule():
    loss = compiled(halving(Pyro), backend="eager")
    run = InPyro(loss, constant(Pyro))
    for step in range(4):
        assert scale_of(run.step()) == pytest.approx(2 * 0.5**step, rel=NEAR)
    assert scale_of(run.evaluate()) == pytest.approx(0.125, rel=NEAR)


@pytest.mark.parametrize(
    "elbo",
    [
        pyro.infer.JitTrace_ELBO,
        pyro.infer.JitTraceEnum_ELBO,
        pyro.infer.JitTraceGraph_ELBO,
        pyro.infer.JitTraceMeanField_ELBO,
    ],
)
def test_a_jit_elbo_would_keep_the_first_scale(elbo):
    run = InPyro(halving(Pyro, elbo=elbo()), constant(Pyro))
    words = rf"site 'x': noise of annealed\(...\) does not move under {elbo.__name__}.*compiled"
    with pytest.raises(NotImplementedError, match=words):
        run.step()


def test_a_step_that_failed_does_not_count():
    run = InPyro(halving(Pyro), constant(Pyro))
    run.step()
    with pytest.raises(NonFiniteError):
        run.svi.step(torch.full((NUMBER,), math.nan))
    assert scale_of(run.step()) == pytest.approx(1, rel=NEAR)


def test_two_losses_with_one_kernel_count_by_themselves():
    noise = Pyro.package.annealed({"x": Pyro.package.GaussianNoise(2.0)}, lambda step: 0.5**step)
    first, second = (Pyro.package.SpreadELBO(noise) for _ in range(2))
    run = InPyro(first, constant(Pyro))
    run.step(), run.step()
    other = InPyro(second, constant(Pyro))
    assert scale_of(other.step()) == pytest.approx(2, rel=NEAR)


@in_both
def test_the_kernel_of_the_next_step_can_be_read(b):
    noise = b.package.annealed(b.package.GaussianNoise(2.0), lambda step: 1.0 - 0.5 * step)
    loss = b.package.SpreadELBO({"x": noise})
    run = RUNS[b](loss, constant(b))

    def kernel():
        if b is Pyro:
            return loss.noise["x"].kernel()
        return noise.kernel(run.state.mutable_state["x$annealed"])

    assert float(kernel().scale) == 2
    run.step()
    assert float(kernel().scale) == 1
    run.step()
    with pytest.raises(ValueError, match=r"annealed: at .* multiplied by"):
        kernel()


def test_levels_move_with_their_kernel():
    levels = Pyro.package.MultiLevelNoise(Pyro.package.GaussianNoise(2.0), [1.0])
    loss = Pyro.package.SpreadELBO({"x": Pyro.package.annealed(levels, lambda step: 0.5**step)})
    run = InPyro(loss, constant(Pyro))
    assert [scale_of(run.step()) for _ in range(2)] == pytest.approx([2, 1], rel=NEAR)


@pytest.mark.slow
@in_both
@pytest.mark.parametrize("kind", ["energy", "adversarial", "joint", "contrast"])
def test_every_loss_counts(b, kind):
    p = b.package
    noise = {"x": p.annealed(p.GaussianNoise(2.0), lambda step: 0.5**step)}
    net = b.pick(torch.nn.LazyLinear(1), linen.Dense(1))

    def model(x):
        with b.plate("data", NUMBER):
            z = b.sample("z", b.dist.Normal(b.np.zeros(NUMBER), 1.0))
            b.sample("x", b.dist.Normal(b.param("w", 0.0) + z, 0.1), obs=x)

    def guide(x):
        with b.plate("data", NUMBER):
            b.sample("z", b.dist.Normal(x * b.param("v", 0.1), 1.0))

    loss = {
        "energy": lambda: p.SlicedWasserstein(noise=noise, num_projections=2),
        "adversarial": lambda: p.AdversarialDivergence(p.concat_sites(net, "x"), noise=noise),
        "joint": lambda: p.JointContrastELBO(p.concat_sites(net, "x", "z"), noise=noise),
        "contrast": lambda: p.PriorContrastELBO(p.concat_sites(net, "x", "z"), noise=noise),
    }[kind]()
    latents = kind in ("joint", "contrast")
    if b is Pyro:
        run = InPyro(loss, model)
        run.svi.guide = guide if latents else no_guide
        run.step(), run.step()
        assert loss.get_state()["_moves"] == {"x": 2}
    else:
        loss_guide = guide if latents else no_guide
        svi = numpyro.infer.SVI(model, loss.register(model, loss_guide), optax.adam(1e-3), loss)
        result = svi.run(jax.random.key(0), 2, jnp.asarray(X), progress_bar=False)
        assert int(result.state.mutable_state["x$annealed"]) == 2


def test_refusals():
    def annealed(b, *args):
        return b.package.annealed(*args)

    def gaussian(b):
        return b.package.GaussianNoise(1.0)

    def outside(b):
        annealed(b, gaussian(b), lambda step: 1.0)(b.np.zeros(3))

    def inside(b):
        transform = b.dist.transforms.ExpTransform()
        noise = b.package.TransformedNoise(transform, annealed(b, gaussian(b), lambda step: 1.0))
        noise(b.np.zeros(3))

    def in_callable(b):
        def noise(x):
            return {"x": annealed(b, gaussian(b), lambda step: 1.0)}

        b.loss(b.package.SpreadELBO(noise), constant(b), X)

    def of_guide(b):
        b.package.SemiImplicitELBO({"z": annealed(b, gaussian(b), lambda step: 1.0)})

    def no_factor(b):
        RUNS[b](
            b.package.SpreadELBO({"x": annealed(b, gaussian(b), lambda step: 0.0)}), constant(b)
        ).step()

    mistakes = {
        "schedule must be a function": lambda b: annealed(b, gaussian(b), 0.5),
        "expected a noise kernel": lambda b: annealed(b, 0.3, lambda step: 1.0),
        "ChannelNoise has no scale": lambda b: annealed(
            b, b.package.ChannelNoise.symmetric(3, 0.2), lambda step: 1.0
        ),
        r"annealed\(...\) has a scale only at a step": outside,
        r"as in SpreadELBO\({'x': annealed": outside,
        "outermost": inside,
        "not from a callable": in_callable,
        "site 'z' has noise of annealed": of_guide,
    }
    for match, mistake in mistakes.items():
        assert_refused_alike(mistake, match=match)
    for b in (Pyro, NumPyro):
        with pytest.raises(ValueError, match=r"site 'x': annealed: at .* multiplied by 0.0"):
            no_factor(b)


def test_numpyro_refuses_a_step_that_it_is_not_told():
    run = InNumPyro(halving(NumPyro), constant(NumPyro))
    with pytest.raises(ValueError, match=r"at a step that params do not tell.*mutable_state"):
        run.svi.evaluate(run.state, run.x)
    loss, model = halving(NumPyro), constant(NumPyro)
    svi = numpyro.infer.SVI(model, no_guide, optax.sgd(1e-3), loss)
    state = svi.init(jax.random.key(0), run.x)
    with pytest.raises(ValueError, match="register"):
        svi.update(state, run.x)


def test_numpyro_spoils_the_loss_where_a_compiled_step_finds_a_factor_that_is_not_positive():
    noise = NumPyro.package.annealed(NumPyro.package.GaussianNoise(1.0), lambda step: 1.0 - step)
    run = InNumPyro(NumPyro.package.SpreadELBO({"x": noise}), constant(NumPyro))
    assert math.isfinite(run.step())
    assert not math.isfinite(run.step())


def test_numpyro_refuses_mutable_state_that_an_elbo_would_lose():
    def model(x):
        numpyro.primitives.mutable("mean", jnp.zeros(()))
        constant(NumPyro)(x)

    run = InNumPyro(halving(NumPyro, elbo=numpyro.infer.RenyiELBO(num_particles=2)), model)
    with pytest.raises(NotImplementedError, match="site 'mean': noise that moves"):
        run.step()
