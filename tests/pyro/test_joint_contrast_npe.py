# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Neural posterior estimation in Pyro: JointContrastELBO with KL and a guide with a density."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive
from pyro_contrast import model, param
from pyro_joint_contrast import X, density_guide, hierarchical

from pyro_spread import KL, JointContrastELBO


def test_npe_trains_and_predicts():
    pyro.set_rng_seed(0)
    optim = pyro.optim.Adam({"lr": 0.02})
    svi = SVI(model, density_guide, optim, JointContrastELBO(divergence=KL()))
    x = torch.zeros(500)
    for _ in range(150):
        svi.step(x)
    assert set(pyro.get_param_store()) == {"m", "s", "mu"}  # no critic's
    assert param("mu").item() == pytest.approx(0.3)  # the simulator is not trained
    # The posterior of z given x has the slope .8; with no intercept, .3 rests on the sd.
    assert pyro.param("m").item() == pytest.approx(0.83, abs=0.04)
    assert pyro.param("s").item() == pytest.approx(0.452, abs=0.03)
    draws = Predictive(model, guide=density_guide, num_samples=50)(x[:6])
    assert draws["z"].shape == (50, 6)


def test_a_delta_is_no_density_for_posterior_estimation():
    def point(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(param("m") * x))

    with pytest.raises(ValueError, match="'z' has no density"):
        JointContrastELBO(divergence=KL()).loss(model, point, X)


def test_posterior_estimation_counts_data_and_not_elements():
    def known(x):
        mu = pyro.sample("mu", dist.Uniform(-100.0, 100.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(mu - 100.0, mu + 100.0))

    def rows(x):
        with pyro.plate("rows", len(x), dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("columns", 3, dim=-1):
                b = pyro.sample("b", dist.Normal(a, 1.0))
                pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def rows_guide(x):
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("a", dist.Uniform(-100.0, 100.0))
            with pyro.plate("columns", 3, dim=-1):
                pyro.sample("b", dist.Uniform(-100.0, 100.0))

    log_width = torch.tensor(200.0).log()
    loss = JointContrastELBO(divergence=KL())
    assert loss.loss(hierarchical, known, X) == pytest.approx((1 + len(X)) * log_width)
    assert loss.loss(rows, rows_guide, torch.zeros(4, 3)) == pytest.approx(4 * log_width)
