# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Learned noise in Pyro, with all else that a step may have."""

import copy
import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import nn

from pyro_spread import (
    AdversarialDivergence,
    GaussianNoise,
    NonFiniteError,
    SpreadELBO,
    compiled,
    concat_sites,
    finite_guard,
    guard_status,
    learned,
    load_checkpoint,
    save_checkpoint,
    two_player,
)
from pyro_spread.infer import _ranks

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.5, 0.5])


def adam():
    return pyro.optim.Adam({"lr": 1e-2})


def noise(constraint="determinant"):
    return learned(GaussianNoise(torch.tensor([0.4, 0.6])), constraint=constraint)


def model(x, size=None, batch=None, keep=None):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", size or len(x), subsample_size=batch) as index:
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        fn = dist.Delta(z, event_dim=1)
        x = x[index] if size and batch and len(x) == size else x
        pyro.sample("x", fn if keep is None else fn.mask(keep), obs=x)


def guide(x, size=None, batch=None, keep=None):
    w = pyro.param("w", torch.tensor(0.5))
    with pyro.plate("data", size or len(x), subsample_size=batch) as index:
        x = x[index] if size and batch and len(x) == size else x
        pyro.sample("z", dist.Normal(w * x, 0.5).to_event(1))


def no_guide(*args, **kwargs):
    pass


def critic():
    return concat_sites(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), "x")


def adversarial(of=noise, **options):
    pyro.set_rng_seed(1)
    pyro.clear_param_store()
    loss = AdversarialDivergence(critic(), noise={"x": of()}, **options)
    optim = two_player(adam(), adam(), 2, noise=adam(), ema=0.9)
    return SVI(model, no_guide, optim, loss)


def bounded(elbo=None, wrap=lambda loss: loss, of=noise, start=guide):
    pyro.set_rng_seed(1)
    pyro.clear_param_store()
    loss = wrap(SpreadELBO({"x": of()}, elbo))
    return SVI(model, start, two_player(adam(), None, noise=adam()), loss)


def kernel(svi):
    store = pyro.get_param_store()
    name = next(n for n in store if n.startswith("noise$x"))
    return store[name].detach().clone()


def moves(svi, *args, **kwargs):
    before = None
    for _ in range(4):
        value = svi.step(*args, **kwargs)
        assert value < float("inf")
        before = kernel(svi) if before is None else before
    return not torch.equal(before, kernel(svi))


def few_or_slow(name):
    """A few cases are always run."""
    marks = () if name in ("masked", "trace") else pytest.mark.slow
    return pytest.param(name, marks=marks)


ADVERSARIAL = {
    "plain": ({}, {}),
    "particles": ({"num_particles": 3}, {}),
    "two passes": ({"update": "two_pass"}, {}),
    "masked": ({}, {"keep": torch.arange(12) != 3}),
}


@pytest.mark.parametrize("name", [few_or_slow(name) for name in ADVERSARIAL])
def test_under_a_critic(name):
    options, kwargs = ADVERSARIAL[name]
    svi = adversarial(**options)
    assert moves(svi, X, **kwargs)
    assert set(svi.optim.averages) == {"loc"}


def test_masked_data_do_not_move_it():
    """What is masked has no part in the gradient, whatever it is."""
    grads = []
    for far in (0.0, 100.0):
        x = X.clone()
        x[3] += far
        svi = adversarial(noise)
        svi.loss_and_grads(model, no_guide, x, keep=torch.arange(12) != 3)
        name = next(n for n in pyro.get_param_store() if n.startswith("noise$"))
        grads.append(pyro.get_param_store()[name].grad.clone())
    torch.testing.assert_close(*grads)


ELBOS = {
    "trace": None,
    "particles": lambda: infer.Trace_ELBO(num_particles=3, vectorize_particles=True),
    "mean field": infer.TraceMeanField_ELBO,
    "graph": infer.TraceGraph_ELBO,
    "importance weighted": lambda: infer.RenyiELBO(num_particles=2),
}


@pytest.mark.parametrize("name", [few_or_slow(name) for name in ELBOS])
def test_under_a_bound(name):
    assert moves(bounded(ELBOS[name] and ELBOS[name]()), X)


@pytest.mark.slow
def test_an_enumerated_latent_has_the_gradient_of_the_mixture():
    """The entropy's term is the same for every value of the latent, and counts once."""
    locs, grads = torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), []

    def enumerated(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Delta(locs[k], event_dim=1), obs=x)

    def summed(x):
        with pyro.plate("data", len(x)):
            mixing, parts = dist.Categorical(torch.ones(2)), dist.Delta(locs, event_dim=1)
            pyro.sample("x", dist.MixtureSameFamily(mixing, parts), obs=x)

    elbos = infer.TraceEnum_ELBO(max_plate_nesting=1), infer.Trace_ELBO()
    for program, elbo in zip((enumerated, summed), elbos, strict=True):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        own = noise()
        SpreadELBO({"x": own}, elbo).loss_and_grads(program, no_guide, X)
        grads.append(own.log_scale.grad)
    assert grads[0].any()
    torch.testing.assert_close(*grads)


def test_the_plate_may_subsample_and_the_bound_is_scaled():
    assert moves(bounded(), X, size=12, batch=5)
    assert moves(bounded(), X[:5], size=12, batch=5)


def test_the_reported_value_is_minus_the_bound():
    fixed = SpreadELBO({"x": GaussianNoise(torch.tensor([0.4, 0.6]))})
    values = []
    for loss in (fixed, SpreadELBO({"x": noise()})):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        values.append(loss.loss_and_grads(model, guide, X))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_noise_alone_is_trained_by_the_optimiser_of_all():
    """Of traces without params stock ELBOs compute no gradients."""

    def of_prior(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(z, event_dim=1), obs=x)

    def given(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 0.5).to_event(1))

    pyro.clear_param_store()
    assert moves(SVI(of_prior, given, adam(), SpreadELBO({"x": noise()})), X)


def test_jit_would_keep_the_first_params():
    with pytest.raises(NotImplementedError, match="does not work under JitTrace_ELBO"):
        bounded(infer.JitTrace_ELBO()).step(X)


@pytest.mark.parametrize("start", [adversarial, bounded])
def test_a_compiled_step_is_the_step(start):
    as_it_is = functools.partial(compiled, backend="eager")
    found = []
    for wrap in (lambda loss: loss, as_it_is):
        svi = start()
        loss = wrap(svi.loss.__self__)
        svi = SVI(svi.model, svi.guide, svi.optim, loss)
        pyro.set_rng_seed(3)
        found.append(([svi.step(X) for _ in range(5)], kernel(svi)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", [adversarial, bounded])
def test_a_resumed_run_goes_on(start, tmp_path):
    svi = start()
    for _ in range(3):
        svi.step(X)
    save_checkpoint(tmp_path / "run", svi, 3)
    wanted = [svi.step(X) for _ in range(3)], kernel(svi)
    pyro.set_rng_seed(99)
    svi = start()
    load_checkpoint(tmp_path / "run", svi, X)
    assert [svi.step(X) for _ in range(3)] == wanted[0]
    assert torch.equal(kernel(svi), wanted[1])


def test_a_failed_step_changes_nothing():
    svi = adversarial()
    svi.step(X)
    before = kernel(svi)
    with pytest.raises(NonFiniteError):
        svi.step(X * torch.nan)
    assert torch.equal(before, kernel(svi))
    guarded = finite_guard(adversarial(), "reduce")
    guarded.step(X)
    guarded.step(X * torch.nan)
    assert guard_status(guarded).skipped == 1


def test_another_run_needs_a_store_of_its_own():
    adversarial().step(X)
    svi = SVI(
        model, no_guide, adam(), AdversarialDivergence(critic(), name="c", noise={"x": noise()})
    )
    with pytest.raises(ValueError, match=r"other learned noise under the name 'noise\$x'"):
        svi.step(X)


class Program(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
            pyro.sample("x", dist.Delta(z, event_dim=1), obs=x)


class Guide(PyroModule):
    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


class NoGuide(nn.Module):
    def forward(self, x):
        pass


MODULES = {
    "critic": lambda own: AdversarialDivergence(critic(), noise={"x": own})(Program(), NoGuide()),
    "bound": lambda own: SpreadELBO({"x": own})(Program(), Guide()),
}


def mean():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    return learned(GaussianNoise(torch.tensor([0.4, 0.6])), "trace", mean=net)


@pytest.mark.parametrize("make", [noise, mean])
@pytest.mark.parametrize("name", MODULES)
def test_as_a_module(name, make):
    own = make()
    module = MODULES[name](own)
    assert {*own.parameters()} <= {*module.parameters()}
    module(X).backward()
    assert all(param.grad.any() for param in own.parameters())
    twin = copy.deepcopy(module)
    torch.manual_seed(0)
    value = module(X)
    torch.manual_seed(0)
    assert value.item() == twin(X).item()


class Two(_ranks.Ranks):
    """The first of two ranks, of which the other one says the same."""

    size, rank = 2, 0

    def all_gather(self, values):
        return [values, values]

    def sum(self, values):
        return 2 * values.detach()


def test_a_shard_is_no_mini_batch():
    token = _ranks._current.set(Two(None))
    try:
        with pytest.raises(NotImplementedError, match="its own shard only"):
            MODULES["bound"](noise())(X)
        module = MODULES["critic"](own := noise())
        module(X).backward()
        assert own.log_scale.grad.any()
    finally:
        _ranks._current.reset(token)
