# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What trained critics of the contrasts know: log-ratios and evidence in closed form."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.infer import SVI
from numpyro_contrast import CRITIC, affine, guide, model, value_of

from numpyro_spread import (
    ImplicitDistribution,
    JointContrastELBO,
    PriorContrastELBO,
    concat_sites,
    two_player,
)
from numpyro_spread.ratio import MLPCritic, QuadraticCritic
from spread_analysis import FalseEvidenceWarning

# --- the log-ratio at the optimum, which for Gaussians is a quadratic form


def learned_form(loss, x, steps):
    """The critic's matrix, vector and constant; model and guide stay as they are."""
    adam = optax.adam(optax.cosine_decay_schedule(0.2, steps), b2=0.99)
    svi = SVI(model, loss.register(model, guide), two_player(optax.sgd(0.0), adam), loss)
    critic = svi.run(random.key(0), steps, x, progress_bar=False).params[CRITIC]
    return critic["matrix"], critic["vector"], critic["constant"][0]


def assert_close(learned, exact, atol):
    for one, other in zip(learned, exact, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def test_the_prior_contrast_learns_the_analytic_log_ratio():
    critic = concat_sites(QuadraticCritic(), "z", "x")
    loss = PriorContrastELBO(critic, adaptive=False, num_critic_draws=20)
    m, s, mu = 0.7, 0.6, 0.3
    # log N(z; m x, s²) - log N(z; mu, 1)
    matrix = [[(1 - s**-2) / 2, m / s**2 / 2], [m / s**2 / 2, -((m / s) ** 2) / 2]]
    exact = matrix, [-mu, 0.0], mu**2 / 2 - np.log(s)
    assert_close(learned_form(loss, jnp.linspace(-2, 2, 100), 300), exact, atol=0.05)


def test_the_joint_contrast_learns_the_analytic_log_ratio():
    loss = JointContrastELBO(concat_sites(QuadraticCritic(), "z", "x"))
    m, s, mu, noise = 0.7, 0.6, 0.3, 0.5
    # log N(z; m x, s²) N(x; 0, 1) - log N(z; mu, 1) N(x; z, noise²)
    matrix = [
        [(1 - s**-2 + noise**-2) / 2, (m / s**2 - noise**-2) / 2],
        [(m / s**2 - noise**-2) / 2, (noise**-2 - (m / s) ** 2 - 1) / 2],
    ]
    exact = matrix, [-mu, 0.0], mu**2 / 2 + np.log(noise) - np.log(s)
    x = dist.Normal(0.0, 1.0).icdf((jnp.arange(2000) + 0.5) / 2000)
    assert_close(learned_form(loss, x, 400), exact, atol=0.1)


# --- training on z ~ N(0, 1), x ~ N(z, scale²)


def conjugate(scale):
    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, scale), obs=x)

    return model


def flexible(x):
    m = numpyro.param("m", jnp.zeros(len(x)))
    s = numpyro.param("s", jnp.ones(len(x)))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", affine(m, s))


def train(scale, x, **options):
    """The recipe for a Gaussian posterior, from the prior, with a likelihood that warms up."""
    x, model = jnp.asarray([x]), conjugate(scale)
    loss = PriorContrastELBO(concat_sites(MLPCritic((64, 64)), "z"), annealing=500, **options)
    rate = optax.exponential_decay(1e-2, 1000, 0.3)
    optim = two_player(optax.adam(rate, b1=0.5), optax.adam(2e-3, b1=0.5), 2)
    svi = SVI(model, loss.register(model, flexible), optim, loss)
    result = jax.block_until_ready(svi.run(random.key(0), 4000, x, progress_bar=False))
    many = PriorContrastELBO(loss.discriminator, num_particles=4000, **options)
    value = value_of(many, result.params, model, flexible, x, seed=1)
    return loss, svi, result, -value


@pytest.mark.parametrize(
    ("scale", "x", "evidence"),
    [(1.0, 2.0, -2.26551212), (0.1, 2.0, -2.90411172), (0.1, 5.0, -13.30015132)],
)
@pytest.mark.slow
def test_training_reaches_the_evidence_at_any_divergence(scale, x, evidence):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FalseEvidenceWarning)
        loss, svi, result, value = train(scale, x)
    deviation = scale / (1 + scale**2) ** 0.5
    assert abs(value - evidence) < 0.01
    assert 0.97 < result.params["s"][0] / deviation < 1.03
    assert abs(result.params["m"][0] - x / (1 + scale**2)) < 0.1 * deviation
    report = loss.held_out_check(
        random.key(2), result.params, conjugate(scale), svi.guide, jnp.asarray([x])
    )
    assert not report.is_false()


@pytest.mark.slow
def test_the_plain_contrast_reports_false_evidence_and_says_so():
    with pytest.warns(FalseEvidenceWarning, match="may lie far above the evidence"):
        value = train(0.1, 5.0, adaptive=False)[-1]
    assert value > -13.30015132 + 1


def collapsed_guide(x):
    spread = jnp.ones(len(x)).at[2].set(0.0)
    with numpyro.plate("data", len(x)):
        noise = dist.Normal(0.0, 1.0)
        numpyro.sample("z", ImplicitDistribution(lambda e: x + spread * e, noise, ()))


def test_the_check_needs_two_draws():
    loss = PriorContrastELBO(concat_sites(QuadraticCritic(), "z"))
    with pytest.raises(ValueError, match=r"held_out_check: num_draws must be .* at least 2, got 1"):
        loss.held_out_check(random.key(0), {}, model, guide, jnp.zeros(3), num_draws=1)


def test_the_check_of_a_collapsed_guide_says_false_evidence():
    loss = PriorContrastELBO(concat_sites(QuadraticCritic(), "z"), adaptive=False)
    registered = loss.register(model, collapsed_guide)
    for at, expected in ((2.0, np.isnan), (0.3, lambda gap: gap > 10)):  # sums of 0.3 are rounded
        x = jnp.array([0.5, -1.0, at, 0.1, -0.4, 1.3])
        svi = SVI(model, registered, optax.sgd(0.0), loss)
        params = svi.get_params(svi.init(random.key(0), x))
        with pytest.warns(FalseEvidenceWarning, match="against a fresh one"):
            report = loss.held_out_check(
                random.key(1), params, model, registered, x, num_steps=2, num_draws=2
            )
        assert np.isfinite(report.estimate)
        assert expected(report.gap)
        assert report.is_false()
