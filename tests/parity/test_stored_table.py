# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Posterior estimation from a table of simulations: the model is not run."""

import numpy as np
import pytest
from twins import assert_refused_alike, in_both
from whole_programs import (
    MASK,
    MU,
    WIDTHS,
    KnowingGuide,
    Table,
    hierarchical_rows,
    hierarchical_sites,
    hierarchy,
    masked_sites,
    minus_log,
    value_of,
)

at_once = pytest.mark.parametrize("vectorized", [False, True])


def estimation(b, table, **options):
    return b.package.JointContrastELBO(divergence=b.package.KL(), simulations=table, **options)


def knowing(b, sites=None, shape=(2, 3)):
    return KnowingGuide(b, hierarchical_sites() if sites is None else sites, shape)


@in_both
@at_once
def test_all_rows_once_are_the_mean_of_all(b, vectorized):
    table, losses = hierarchical_rows()
    for number in (None, 4, 9):
        loss = estimation(b, table, num_particles=number, vectorize_particles=vectorized)
        assert loss.num_particles == 4
        value = value_of(b, loss, hierarchy(b), knowing(b), None)
        np.testing.assert_allclose(value, losses.mean())


@in_both
@at_once
def test_some_rows_are_drawn_at_random(b, vectorized):
    table, losses = hierarchical_rows()
    seen = set()

    def sites(b, x, mask):
        hierarchical_sites()(b, x)

    loss = estimation(b, table, num_particles=1, vectorize_particles=vectorized)
    for seed in range(30):
        if b.key:
            import jax

            value = loss.loss(jax.random.key(seed), {}, hierarchy(b), knowing(b, sites))
        else:
            value = loss.loss(hierarchy(b), knowing(b, sites))
        near = np.abs(losses - float(value))
        assert near.min() < 1e-9
        seen.add(int(near.argmin()))
    assert seen == {0, 1, 2, 3}


@in_both
@at_once
def test_failed_rows_are_never_drawn(b, vectorized):
    table, losses = hierarchical_rows()
    table.values["x"] = table.values["x"].copy()
    table.values["x"][[0, 2]] = np.nan
    table.valid = np.array([False, True, False, True])
    with pytest.warns(match="2 of 4 rows of the table"):
        loss = estimation(b, table, vectorize_particles=vectorized)
    assert loss.num_particles == 2
    value = value_of(b, loss, hierarchy(b), knowing(b))
    np.testing.assert_allclose(value, losses[[1, 3]].mean())


@in_both
@at_once
def test_guides_that_read_their_arguments(b, vectorized):
    """A row is one run of the program, with its data in a plate."""

    def model(x):
        with b.plate("data", 5):
            z = b.sample("z", b.dist.Normal(0.0, 1.0))
            b.sample("x", b.dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with b.plate("data", x.shape[-1]):
            b.sample("z", b.dist.Normal(0.7 * x, WIDTHS["z"]))

    z, x = MU[:, None] * np.arange(1.0, 6.0), MU[:, None] + np.zeros(5)
    for observed in ((), ("x",)):
        table = Table({"z": z, "x": x}, observed)
        loss = estimation(b, table, vectorize_particles=vectorized)
        value = value_of(b, loss, model, guide, b.array(np.zeros(5)))
        np.testing.assert_allclose(value, minus_log(z, 0.7 * x, WIDTHS["z"]).mean())
    # Of a model that observes nothing at these arguments the table says what the data are.
    value = value_of(b, loss, model, lambda x: guide(x), None)
    np.testing.assert_allclose(value, minus_log(z, 0.7 * x, WIDTHS["z"]).mean())


@in_both
@at_once
def test_masks_of_the_table_reach_the_guide(b, vectorized):
    def model(x=None):
        mu = b.sample("mu", b.dist.Normal(0.3, 1.0))
        with b.plate("data", 4):
            b.sample("x", b.dist.Normal(mu, 1.0), obs=x)

    x = MU[:, None] * np.array([1.0, 2.0, 3.0, 4.0])
    mask = np.array([MASK, ~MASK, MASK | True, MASK])
    means = (x * mask).sum(-1) / mask.sum(-1)
    table = Table({"mu": MU, "x": np.where(mask, x, np.nan)}, masks={"x": mask})
    loss = estimation(b, table, vectorize_particles=vectorized)
    value = value_of(b, loss, model, knowing(b, masked_sites, 4))
    np.testing.assert_allclose(value, minus_log(MU, means, WIDTHS["mu"]).mean())


@in_both
@at_once
def test_noise_is_on_the_data_of_the_table(b, vectorized):
    table, losses = hierarchical_rows()

    def value(scale):
        noise = {"x": b.package.GaussianNoise(scale)}
        loss = estimation(b, table, noise=noise, vectorize_particles=vectorized)
        return value_of(b, loss, hierarchy(b), knowing(b))

    np.testing.assert_allclose(value(1e-30), losses.mean())
    assert value(50.0) > 10 * losses.mean()


@in_both
def test_latents_that_the_guide_lacks_are_left_out(b):
    def sites(b, x, mask):
        b.sample("mu", b.dist.Normal(x.mean((-1, -2), keepdims=True), WIDTHS["mu"]))

    table, _ = hierarchical_rows()
    value = value_of(b, estimation(b, table), hierarchy(b), knowing(b, sites))
    np.testing.assert_allclose(value, minus_log(MU, MU + 1, WIDTHS["mu"]).mean())
    table.values.pop("c")
    value = value_of(b, estimation(b, table), hierarchy(b), knowing(b, sites))
    np.testing.assert_allclose(value, minus_log(MU, MU + 1, WIDTHS["mu"]).mean())


# --- what is refused


def rows(**changed):
    table, _ = hierarchical_rows()
    table.values |= changed
    for name in [name for name, value in changed.items() if value is None]:
        table.values.pop(name)
    return table


def scored(table, model=hierarchy, guide=knowing, size=None, **options):
    def mistake(b):
        given = (b, size) if size else (b,)
        value_of(b, estimation(b, table, **options), model(*given), guide(b))

    return mistake


REFUSED = {
    "no latent": (scored(rows(c=None)), "site 'c' is needed .* it holds .'mu', 'x', 'z'."),
    "no data": (scored(rows(x=None)), "site 'x' is needed .* it holds .'c', 'mu', 'z'."),
    "shape of a latent": (
        scored(rows(mu=np.zeros((4, 2)))),
        r"site 'mu': a row of the table .* shape \(2,\), but .* the model draws \(\)",
    ),
    "shape of the data": (
        scored(rows(x=np.zeros((4, 2, 4)))),
        r"site 'x': a row of the table .* shape \(2, 4\), but .* the model draws \(2, 3\)",
    ),
    "a plate that subsamples": (
        scored(rows(), size=6),
        "site 'x' stands in plate 'groups', which subsamples",
    ),
    "an observed site of another program": (
        scored(
            Table(rows().values, ("y",)),
            guide=lambda b: lambda x=None: hierarchical_sites()(b, np.zeros((2, 3))),
        ),
        "the table says that data are at site 'y', but the model has no such sample site",
    ),
    "masks within an event": (
        scored(
            Table(rows(x=np.zeros((4, 3))).values, masks={"x": np.ones((4, 3), bool)}),
            model=lambda b: (
                lambda x=None: b.sample(
                    "x",
                    b.dist.Normal(
                        b.array(np.zeros(3)), b.sample("mu", b.dist.Normal(0.0, 1.0)) ** 2
                    ).to_event(1),
                    obs=x,
                )
            ),
        ),
        "site 'x': the model masks parts of an event",
    ),
    "no table": (scored({"mu": MU}), "takes a table of class Simulations, not dict"),
    "no valid row": (
        scored(Table(rows().values, valid=np.zeros(4, bool))),
        "all 4 rows of the table contain NaN or inf",
    ),
    "no particles": (scored(rows(), num_particles=0), "num_particles"),
    "another divergence": (
        lambda b: b.package.JointContrastELBO(divergence=b.package.ReverseKL(), simulations=rows()),
        "simulations= needs KL.. and no discriminator",
    ),
    "a discriminator": (
        lambda b: b.package.JointContrastELBO(
            lambda values: None, b.package.KL(), simulations=rows()
        ),
        "simulations= needs KL.. and no discriminator",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    mistake, match = REFUSED[name]
    assert_refused_alike(mistake, match)
