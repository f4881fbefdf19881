# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""In which plates JointContrastELBO finds its data in Pyro, and what stands outside of them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_contrast import Recorder, Told, affine, model, param
from pyro_joint_contrast import X

from pyro_spread import ImplicitDistribution, JointContrastELBO
from pyro_spread.infer._joint_sides import data_plates


def nested(x, implicit=False):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 3, dim=-2):
        c = pyro.sample("c", dist.Normal(beta, 1.0))
    with pyro.plate("data", 2, dim=-1), pyro.plate("rows", 3, dim=-2):
        fn = affine(param("m") * x, param("s")) if implicit else dist.Normal(c, 1.0)
        z = pyro.sample("z", fn)
        if not implicit:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_the_plates_of_the_data_are_found():
    assert data_plates(nested, (torch.zeros(3, 2),), {}) == {"data"}
    assert data_plates(lambda x: pyro.sample("x", dist.Normal(0.0, 1.0), obs=x), (X[0],), {}) == {
        *()
    }

    def two(x):
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.deterministic("twice", 2 * x)
            with pyro.plate("more", 4, dim=-2):
                pyro.sample("y", dist.Normal(0.0, 1.0).expand([4, 6]), obs=torch.zeros(4, 6))

    state = torch.get_rng_state()
    assert data_plates(two, (X,), {}) == {"data"}
    assert torch.equal(torch.get_rng_state(), state)


def test_globals_may_stand_in_plates_of_their_own():
    critic = Recorder()
    x = torch.arange(6.0).reshape(3, 2)
    JointContrastELBO(critic).loss_and_grads(nested, lambda x: nested(x, implicit=True), x)
    for values, _, _ in critic.seen:
        assert set(values) == {"x", "z"}
        assert values.batch_shape == (2,)
        assert values["z"].shape == values["x"].shape == (2, 3)
        assert values.arguments["beta"].shape == (2,)
        assert values.arguments["c"].shape == (2, 3, 1)  # of the inner plate alone


def test_subsampled_rows_are_the_same_for_all():
    def subsampled(x, label, fn=None):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", fn(x[rows]) if fn else dist.Normal(0.0, 1.0))
            if fn is None:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def implicit(x, label):
        subsampled(x, label, lambda at: affine(at, 0.01))

    critic, x = Recorder(), torch.arange(20.0)
    JointContrastELBO(critic).loss_and_grads(subsampled, implicit, x, 10 * x)
    guide_side, *others = [values for values, _, _ in critic.seen]
    assert torch.equal(10 * guide_side["x"], guide_side.arguments["label"])
    assert (guide_side["z"] - guide_side["x"]).abs().max() < 0.1
    for side in others:
        assert torch.equal(side.arguments["x"], guide_side["x"])
    told = Told(lambda values, *args: torch.ones(4))
    assert JointContrastELBO(told).loss(subsampled, implicit, x, x) == pytest.approx(20.0)


def test_without_a_plate_there_is_one_pair():
    def single(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(), param("s")), obs=x)

    def single_guide(x):
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        m = param("m")
        pyro.sample("z", ImplicitDistribution(lambda eps: m * x + eps, base, (2,)))

    critic = Recorder()
    JointContrastELBO(critic).loss_and_grads(single, single_guide, X[0])
    assert all(values.batch_shape == () for values, _, _ in critic.seen)
    assert pyro.param("m").grad.any()


def test_methods_of_different_objects_are_different_models():
    class Study:
        def __init__(self, run):
            self.run = run

        def model(self, x):
            return self.run(x)

    one, other = Study(model), Study(nested)
    assert data_plates(one.model, (X,), {}) == {"data"}
    assert data_plates(other.model, (torch.zeros(3, 2),), {}) == {"data"}
    assert data_plates(one.model, (X,), {}) == {"data"}
