# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise is fresh at every step and particle, shared where it must be, and repeatable."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

from pyro_spread import ChannelNoise, GaussianNoise, LowRankGaussianNoise, SpreadELBO

X = torch.linspace(-1, 1, 6)


class Recorder:
    """A model and a guide that keep what they are handed."""

    def __init__(self):
        self.by_guide, self.by_model = [], []

    def guide(self, x):
        self.by_guide.append(x.detach().clone())
        v = pyro.param("v", torch.tensor(0.1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(v * x, 0.5))

    def model(self, x):
        self.by_model.append(x.detach().clone())
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(w * z), obs=x)

    def svi(self, elbo=None, noise=None):
        loss = SpreadELBO({"x": noise or GaussianNoise(0.3)}, elbo)
        return SVI(self.model, self.guide, pyro.optim.Adam({"lr": 0.01}), loss)


def all_different(values):
    return len({tuple(v.flatten().tolist()) for v in values}) == len(values)


AVERAGED = [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO]


@pytest.mark.parametrize("elbo", AVERAGED)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_fresh_for_every_step_and_particle(elbo, num_particles):
    recorder = Recorder()
    svi = recorder.svi(elbo(num_particles=num_particles))
    for _ in range(4):
        svi.step(X)
    assert len(recorder.by_guide) == 4 * num_particles
    assert all_different(recorder.by_guide)
    # Elements differ from x by noise of the right size, not by a shared shift.
    residuals = torch.stack(recorder.by_guide) - X
    assert len(set(residuals.flatten().tolist())) == residuals.numel()


@pytest.mark.parametrize("elbo", AVERAGED)
def test_vectorised_particles_do_not_share_noise(elbo):
    recorder = Recorder()
    svi = recorder.svi(elbo(num_particles=3, vectorize_particles=True))
    for _ in range(2):
        svi.step(X)
    # The first run of stock code guesses the plate nesting, on the first draw.
    assert len({tuple(y.tolist()) for y in recorder.by_guide}) == 6


@pytest.mark.parametrize("vectorized", [False, True])
def test_importance_weighted_particles_share_one_draw(vectorized):
    recorder = Recorder()
    svi = recorder.svi(RenyiELBO(num_particles=4, vectorize_particles=vectorized))
    for _ in range(3):
        svi.step(X)
    assert len({tuple(y.tolist()) for y in recorder.by_guide}) == 3


def test_model_and_guide_get_the_same_draw():
    recorder = Recorder()
    svi = recorder.svi(Trace_ELBO(num_particles=2))
    svi.step(X)
    svi.evaluate_loss(X)
    assert len(recorder.by_model) == 4
    for by_guide, by_model in zip(recorder.by_guide, recorder.by_model, strict=True):
        assert torch.equal(by_guide, by_model)
        assert not torch.isclose(by_guide, X).all()


def test_evaluation_is_fresh_too():
    recorder = Recorder()
    svi = recorder.svi()
    assert svi.evaluate_loss(X) != svi.evaluate_loss(X)
    assert all_different(recorder.by_guide)


def test_every_draw_has_the_right_size():
    recorder = Recorder()
    svi = recorder.svi(Trace_ELBO(num_particles=300))
    svi.step(X)
    residuals = torch.stack(recorder.by_guide) - X
    assert abs(residuals.mean()) < 5 * 0.3 / 1800**0.5
    assert residuals.std() == pytest.approx(0.3, rel=5 / (2 * 1800) ** 0.5)


def test_correlated_noise_is_fresh_for_every_datum():
    x, seen = torch.zeros(50, 4), []

    def model(x):
        with pyro.plate("data", 50):
            pyro.sample("x", dist.Delta(torch.zeros(4), event_dim=1), obs=x)

    noise = LowRankGaussianNoise(0.01, torch.ones(4, 1))
    SpreadELBO({"x": noise}).loss(model, lambda x: seen.append(x), x)
    assert len(set(seen[0].mean(1).tolist())) == 50
    assert seen[0].std(1).max() < 0.1 * seen[0].std(0).min()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("num_particles", [1, 2])
def test_compiled_steps_draw_afresh(num_particles):
    # With the guide's own draws gone, the loss varies by the noise alone.
    def model(x):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Delta(w.expand(6)), obs=x)

    elbo = JitTrace_ELBO(num_particles=num_particles, ignore_jit_warnings=True)
    svi = SVI(
        model,
        lambda x: None,
        pyro.optim.SGD({"lr": 0.0}),
        SpreadELBO({"x": GaussianNoise(0.3)}, elbo),
    )
    losses = [svi.step(X) for _ in range(200)]
    assert len(set(losses)) == 200
    # y - w is N(x - w, s²): mean and variance of the sum of squares are known.
    offset = (X - 0.5) / 0.3
    mean = 6 * (0.5 + torch.tensor(0.3 * (2 * torch.pi) ** 0.5).log()) + (offset**2).sum() / 2
    variance = (6 * 2 + 4 * (offset**2).sum()) / 4 / num_particles
    values = torch.tensor(losses)
    assert abs(values.mean() - mean) < 5 * (variance / 200) ** 0.5
    assert values.var() == pytest.approx(float(variance), rel=0.6)


@pytest.mark.parametrize("noise", [GaussianNoise(0.3), ChannelNoise.symmetric(3, 0.5)])
def test_callers_data_are_untouched(noise):
    discrete = isinstance(noise, ChannelNoise)
    x = torch.randint(3, (6,)) if discrete else X.clone()
    before, version = x.clone(), x._version

    def model(x):
        fn = dist.Categorical(torch.ones(3)) if discrete else dist.Delta(torch.zeros(6))
        with pyro.plate("data", 6):
            pyro.sample("x", fn, obs=x)

    def guide(x):
        x += 1 if not discrete else 0  # even a guide that writes into its argument

    loss = SpreadELBO({"x": noise})
    args = [x]
    loss.loss(model, guide, *args)
    loss.loss_and_grads(model, lambda x: None, x=x)
    assert torch.equal(x, before)
    assert x._version == version
    assert args[0] is x


def test_guide_cannot_spoil_the_clean_data_but_may_write_into_y():
    # The model reads the same y as the guide, so a guide that writes into it changes both.
    x, seen = X.clone(), []

    def model(x):
        seen.append(x.clone())
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Delta(torch.zeros(6)), obs=x)

    SpreadELBO({"x": GaussianNoise(1e-3)}).loss(model, lambda x: x.add_(100.0), x)
    assert torch.equal(x, X)
    assert seen[0].min() > 90


def test_seeds_repeat_runs():
    def run(seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        svi = Recorder().svi(Trace_ELBO(num_particles=2))
        return [svi.step(X) for _ in range(4)]

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_copies_draw_their_own_noise():
    loss = SpreadELBO({"x": GaussianNoise(0.3)}, TraceEnum_ELBO(num_particles=2))
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        recorder = Recorder()
        svi = SVI(recorder.model, recorder.guide, pyro.optim.Adam({}), twin)
        with pytest.warns(UserWarning, match="no sample sites configured for enumeration"):
            svi.step(X)
        assert twin._runner._get_traces.__self__ is twin
        assert len({tuple(y.tolist()) for y in recorder.by_guide}) == 2


def test_samples_of_a_trained_model_are_clean():
    recorder = Recorder()
    svi = recorder.svi()
    for _ in range(3):
        svi.step(X)

    def model(x=None):
        w = pyro.param("w")
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Delta(w * z), obs=x)

    draws = Predictive(model, num_samples=5)()
    torch.testing.assert_close(draws["x"], pyro.param("w") * draws["z"])


def test_stock_elbo_of_the_same_model_is_infinite():
    # What the library is for.
    recorder = Recorder()
    assert Trace_ELBO().loss(recorder.model, recorder.guide, X) == float("inf")
    assert recorder.svi().step(X) < float("inf")
