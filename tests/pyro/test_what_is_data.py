# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What a model observes is data only if the model has neither drawn nor learned it itself."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_spread import (
    KL,
    AdversarialDivergence,
    EnergyDistance,
    JointContrastELBO,
    concat_sites,
)
from pyro_spread.ratio import MLPCritic

N = 30
X = torch.randn(N, generator=torch.Generator().manual_seed(0))


def no_guide(*args, **kwargs):
    pass


def model(x, observe=lambda x, z, w: x, score=None):
    w = pyro.param("w", lambda: torch.tensor(0.5))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if score is not None:
            pyro.sample("score", dist.Normal(5.0, 1.0), obs=score(z))
        pyro.sample("x", dist.Normal(w * z, 1.0), obs=observe(x, z, w))


def density_guide(x, **kwargs):
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(pyro.param("m", lambda: torch.tensor(0.1)), 1.0))


OWN_DRAWS = {
    "itself": lambda z: z,
    "detached": lambda z: z.detach(),
    "a function": lambda z: z.square().flip(0),
    "rounded": lambda z: (10 * z).round(),
}


def losses():
    pyro.clear_param_store()
    yield EnergyDistance(), no_guide
    yield AdversarialDivergence(concat_sites(MLPCritic([4], input_dim=1), "x")), no_guide
    yield JointContrastELBO(concat_sites(MLPCritic([4], input_dim=2), "x", "z")), density_guide
    yield JointContrastELBO(divergence=KL()), density_guide


@pytest.mark.parametrize("name", OWN_DRAWS)
def test_own_draws_are_no_data(name):
    for loss, guide in losses():

        def scored(x):
            model(x, score=OWN_DRAWS[name])

        for method in (loss.loss, loss.loss_and_grads):
            with pytest.raises(ValueError, match=r"site 'score': what it observes .*SpreadELBO"):
                method(scored, guide, X)


def test_draws_at_observed_sites_are_own_draws():
    def residual(x):
        w = pyro.param("w", lambda: torch.tensor(0.5))
        with pyro.plate("data", N):
            drawn = pyro.sample("x", dist.Normal(w, 1.0), obs=x)
            pyro.sample("residual", dist.Normal(0.0, 1.0), obs=drawn - w.detach())

    with pytest.raises(ValueError, match="site 'residual': what it observes changes"):
        EnergyDistance().loss(residual, no_guide, X)


def test_discrete_draws_are_own_draws():
    def switched(x):
        w = pyro.param("w", lambda: torch.tensor(0.5))
        which = pyro.sample("which", dist.Bernoulli(torch.tensor(0.5)))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x + 1 if which else x + 2)

    with pytest.raises(ValueError, match="site 'x': what it observes changes"):
        EnergyDistance().loss(switched, no_guide, X)


def test_what_is_learned_is_no_data():
    net = torch.nn.Linear(1, 1)

    def features(x):
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(z), obs=net(x[:, None])[:, 0])

    for own in (lambda x: model(x, observe=lambda x, z, w: x / w), features):
        for loss in (EnergyDistance().loss, EnergyDistance().loss_and_grads):
            with pytest.raises(ValueError, match=r"site 'x': what it observes depends on params"):
                loss(own, no_guide, X)


def test_functions_of_the_arguments_are_data():
    state = pyro.util.get_rng_state()["torch"]

    def prepared(x):
        model(x, observe=lambda x, z, w: torch.where(x > 0, x.exp(), x) + torch.rand(N))

    def with_nan(x):
        model(x, observe=lambda x, z, w: 0.0 + torch.where(x > 0, x, torch.nan))

    def subsampled(x):
        with pyro.plate("data", N, subsample_size=10) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    torch.set_rng_state(state)
    EnergyDistance().loss(prepared, no_guide, X.clone().requires_grad_())
    EnergyDistance().loss(subsampled, no_guide, X)
    EnergyDistance().loss(poutine.condition(model_without_data, data={"x": X}), no_guide)
    masked = poutine.mask(with_nan, mask=X > 0)
    EnergyDistance().loss(masked, no_guide, X)
    fixed = torch.nn.Linear(1, 1)

    def features(x):
        model(x, observe=lambda x, z, w: fixed(x[:, None])[:, 0].detach())

    EnergyDistance().loss(features, no_guide, X)


def model_without_data():
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def test_the_look_is_taken_once_and_leaves_no_trace():
    runs = []
    norm = torch.nn.BatchNorm1d(1)

    def counted(x, later=False):
        runs.append(1)
        norm(x[:, None])
        model(x, observe=lambda x, z, w: z if later else x + 0.0)

    for _ in range(3):
        EnergyDistance().loss(counted, no_guide, X)
    assert len(runs) == 5  # one step each, and the first looked twice
    assert norm.num_batches_tracked == 3
    pyro.set_rng_seed(0)
    first = EnergyDistance().loss(lambda x: counted(x), no_guide, X)
    pyro.set_rng_seed(0)
    assert EnergyDistance().loss(counted, no_guide, X) == first
    plain = len(runs)
    EnergyDistance().loss(lambda x: counted_as_given(x, runs), no_guide, X)
    assert len(runs) == plain + 1  # an argument, or a view of one, needs no look


def counted_as_given(x, runs):
    runs.append(1)
    model(x, observe=lambda x, z, w: x.reshape(1, N)[0])


# --- a latent that all data share


def shared(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    w = pyro.param("w", lambda: torch.tensor(0.5))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(mu * w, 1.0), obs=x)


def global_guide(x):
    pyro.sample("mu", dist.Normal(pyro.param("m", lambda: torch.tensor(0.1)), 1.0))


def crossed(x):
    rows, cols = pyro.plate("data", 10, dim=-2), pyro.plate("cols", 3, dim=-1)
    with cols:
        loc = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with rows, cols:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x.reshape(10, 3))


def unplated(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(N), 1.0))
    pyro.sample("x", dist.Normal(mu + z, 1.0), obs=x)


@pytest.mark.parametrize("model", [shared, crossed, unplated])
def test_a_shared_latent_of_the_prior_is_told_once(model):
    def fresh(x):
        model(x)

    where = "the batch" if model is unplated else "the plate 'data'"
    with pytest.warns(UserWarning, match=f"'mu' stands outside of {where}.*Put it into the guide"):
        EnergyDistance().loss(fresh, no_guide, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EnergyDistance().loss(fresh, no_guide, X)
        critic = concat_sites(MLPCritic([4], input_dim=3 if model is crossed else 1), "x")
        AdversarialDivergence(critic).loss(fresh, no_guide, X)


def test_other_latents_are_fine():
    def constant(x):
        pyro.sample("one", dist.Delta(torch.tensor(1.0)))
        model(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EnergyDistance().loss(lambda x: shared(x), global_guide, X)
        EnergyDistance().loss(constant, no_guide, X)
