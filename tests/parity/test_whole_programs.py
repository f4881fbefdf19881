# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Posterior estimation of whole programs: a particle is one run, global latents included."""

import numpy as np
import pytest
from twins import Pyro, assert_refused_alike, in_both
from whole_programs import (
    MASK,
    WIDTHS,
    KnowingGuide,
    UnmaskedGuide,
    hierarchical_loss,
    hierarchical_sites,
    hierarchy,
    masked_sites,
    minus_log,
    value_of,
)


def estimation(b, number=3, vectorized=True, **options):
    return b.package.JointContrastELBO(
        divergence=b.package.KL(),
        num_particles=number,
        vectorize_particles=vectorized,
        **options,
    )


WAYS = {"one": (1, False), "in turn": (3, False), "at once": (3, True)}
ways = pytest.mark.parametrize("way", WAYS)


@in_both
@ways
@pytest.mark.parametrize("size", [None, 6])
def test_a_global_latent_with_local_and_nested_ones(b, way, size):
    guide = KnowingGuide(b, hierarchical_sites(size), (2, 3))
    value = value_of(b, estimation(b, *WAYS[way]), hierarchy(b, size), guide)
    # Two groups of six stand for all.
    np.testing.assert_allclose(value, hierarchical_loss(scale=3.0 if size else 1.0))


@in_both
@ways
def test_data_arguments_may_hold_nothing_or_anything(b, way):
    guide = KnowingGuide(b, hierarchical_sites(), (2, 3))
    loss = estimation(b, *WAYS[way])
    for x in (None, b.array(np.full((2, 3), 7.0))):
        value = value_of(b, loss, hierarchy(b), guide, x, 0.5)
        np.testing.assert_allclose(value, hierarchical_loss(0.8))


@in_both
@ways
def test_noise_is_on_what_a_knowing_guide_is_given(b, way):
    def value(scale, site="x"):
        loss = estimation(b, *WAYS[way], noise={site: b.package.GaussianNoise(scale)})
        guide = KnowingGuide(b, hierarchical_sites(), (2, 3))
        return value_of(b, loss, hierarchy(b), guide, None)

    np.testing.assert_allclose(value(1e-30), hierarchical_loss())
    assert value(50.0) > 10 * hierarchical_loss()
    with pytest.raises(ValueError, match="'y'"):
        value(0.5, site="y")


# --- plates and batches that no plate counts


@in_both
@ways
def test_local_latents_alone_are_a_mean_over_the_data(b, way):
    def model(x=None):
        with b.plate("data", 5):
            z = b.sample("z", b.dist.Normal(0.3, 1e-30))
            b.sample("x", b.dist.Normal(2 * z, 1e-30), obs=x)

    def sites(b, x, mask):
        with b.plate("data", 5):
            b.sample("z", b.dist.Normal(x, WIDTHS["z"]))

    value = value_of(b, estimation(b, *WAYS[way]), model, KnowingGuide(b, sites, 5))
    np.testing.assert_allclose(value, minus_log(0.3, 0.6, WIDTHS["z"]))


@in_both
@ways
def test_batches_of_different_sizes_without_plates_are_one_run(b, way):
    def model(x=None):
        z = b.sample("z", b.dist.Normal(b.array(np.array([0.3, 0.5])), 1e-30))
        b.sample("x", b.dist.Normal(b.array(np.ones(3)) * z[..., :1], 1e-30), obs=x)

    def sites(b, x, mask):
        b.sample("z", b.dist.Normal(x[..., :1] + b.array(np.zeros(2)), WIDTHS["z"]))

    value = value_of(b, estimation(b, *WAYS[way]), model, KnowingGuide(b, sites, 3))
    np.testing.assert_allclose(value, minus_log(np.array([0.3, 0.5]), 0.3, WIDTHS["z"]).sum())


# --- masks


def masked(b):
    def model(x=None, mask=None):
        mu = b.sample("mu", b.dist.Normal(0.3, 1e-30))
        with b.plate("data", 4):
            values = b.dist.Normal(b.array(np.array([1.0, 2.0, 3.0, 4.0])) * mu, 1e-30)
            b.sample("x", values.mask(mask), obs=x)

    return model


@in_both
@ways
def test_what_the_model_masks_reaches_the_guide(b, way):
    guide, mask = KnowingGuide(b, masked_sites, 4), b.array(MASK)
    value = value_of(b, estimation(b, *WAYS[way]), masked(b), guide, None, mask)
    np.testing.assert_allclose(value, minus_log(0.3, 0.3 * 7 / 3, WIDTHS["mu"]))
    whole = value_of(b, estimation(b, *WAYS[way]), masked(b), guide, None, b.array(MASK | True))
    np.testing.assert_allclose(whole, minus_log(0.3, 0.3 * 10 / 4, WIDTHS["mu"]))


@in_both
@ways
def test_a_masked_draw_that_is_nan_is_no_failure(b, way):
    def model(x=None, mask=None):
        mu = b.sample("mu", b.dist.Normal(0.3, 1e-30))
        with b.plate("data", 4):
            values = b.array(np.array([1.0, 2.0, np.nan, 4.0])) * mu
            b.sample("x", b.dist.Delta(values).mask(mask), obs=x)

    guide, mask = KnowingGuide(b, masked_sites, 4), b.array(MASK)
    value = value_of(b, estimation(b, *WAYS[way]), model, guide, None, mask)
    np.testing.assert_allclose(value, minus_log(0.3, 0.3 * 7 / 3, WIDTHS["mu"]))


def test_a_guide_that_cannot_be_told_of_masks_is_refused():
    def mistake(b):
        guide = UnmaskedGuide(b, masked_sites, 4)
        value_of(b, estimation(b), masked(b), guide, None, b.array(MASK))

    assert_refused_alike(mistake, "site 'x': the model masks .* given.values. takes no masks")


def test_a_mask_within_an_event_is_refused():
    def mistake(b):
        def model(x=None):
            b.sample("mu", b.dist.Normal(0.3, 1.0))
            values = b.dist.Normal(b.array(np.zeros(4)), 1.0).mask(b.array(MASK)).to_event(1)
            b.sample("x", values, obs=x)

        value_of(b, estimation(b), model, KnowingGuide(b, masked_sites, 4))

    assert_refused_alike(mistake, "site 'x': the model masks parts of an event")


def test_a_data_site_that_is_none_of_the_model_is_refused():
    def mistake(b):
        guide = KnowingGuide(b, hierarchical_sites(), (2, 3), sites=("y",))
        value_of(b, estimation(b), hierarchy(b), guide)

    assert_refused_alike(mistake, "the guide says that data are at site 'y'.*it draws .*'mu'")


# --- simulations that fail


@in_both
@pytest.mark.parametrize("way", ["in turn", "at once"])
@pytest.mark.parametrize("local", [False, True])
def test_what_is_left_when_some_simulations_fail(b, way, local):
    """Whole runs with a global latent, single data without."""

    def model(x=None):
        mu = 0.3 if local else b.sample("mu", b.dist.Uniform(-1.0, 1.0))
        with b.plate("data", 5):
            z = b.sample("z", b.dist.Uniform(-1.0, 1.0))
            draws = (z if local else mu + 0 * z) ** 0.5  # NaN for one half
            b.sample("x", b.dist.Delta(draws), obs=x)

    def sites(b, x, mask):
        if not local:
            b.sample("mu", b.dist.Uniform(-50.0, 50.0))
        with b.plate("data", 5):
            b.sample("z", b.dist.Uniform(-50.0, 50.0))

    loss = estimation(b, 20, way == "at once", exclude_invalid_x=True)
    with pytest.warns(match="left out"):
        value = value_of(b, loss, model, KnowingGuide(b, sites, 5))
    np.testing.assert_allclose(value, np.log(100.0) * (1 if local else 6))


def test_runs_that_all_fail_are_refused():
    def model(x=None):
        mu = Pyro.sample("mu", Pyro.dist.Uniform(-2.0, -1.0))
        Pyro.sample("x", Pyro.dist.Delta(mu**0.5), obs=x)

    def value(**options):
        guide = KnowingGuide(Pyro, lambda b, x, mask: b.sample("mu", b.dist.Normal(x, 1.0)), ())
        return value_of(Pyro, estimation(Pyro, **options), model, guide)

    with pytest.raises(ValueError, match="site 'x' of the generator"):
        value()
    with (
        pytest.raises(ValueError, match="all 3 simulations of this step"),
        pytest.warns(match="left out"),
    ):
        value(exclude_invalid_x=True)
