# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""NumPyro's scan and cond: what works in their bodies, and what is refused with a way out."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.tree_util import Partial
from numpyro import handlers, infer
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer import SVI
from numpyro.primitives import mutable
from numpyro_walk import KEY, N, T, X, no_guide, over_time, walk

from numpyro_spread import (
    MMD,
    AutoImplicit,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    ImplicitDistribution,
    PriorContrastELBO,
    SemiImplicitELBO,
    SpreadELBO,
    concat_sites,
)


class Zero(eqx.Module):
    """A critic that has learned nothing."""

    def __call__(self, features):
        return jnp.zeros(features.shape[:-1])


class Sum(eqx.Module):
    def __call__(self, features):
        return features.sum(-1)


def push(previous, xt, eps):
    return 0.3 * xt + 0.4 * previous + 0.5 * eps


def normal(previous, xt):
    return numpyro.sample("z", dist.Normal(0.3 * xt + 0.4 * previous, 0.5))


def implicit(previous, xt):
    fn = ImplicitDistribution(Partial(push, previous, xt), dist.Normal(0.0, 1.0), ())
    return numpyro.sample("z", fn)


def loss_of(loss, model, guide, params=None):
    return loss.loss(KEY, params or {}, model, guide, X)


# --- refused


def learned_inside(previous, xt):
    w = numpyro.param("w", 1.0)
    return numpyro.sample("x", dist.Delta(w + previous), obs=xt)


def state_inside(previous, xt):
    mutable("state", {"count": 0})
    return numpyro.sample("x", dist.Delta(1 + previous), obs=xt)


def subsampled(x):
    def body(previous, xt):
        with numpyro.plate("N", 2 * N, subsample_size=N):
            numpyro.sample("x", dist.Delta(1 + previous), obs=xt)
        return previous, None

    scan(body, jnp.zeros(N), x)


def nested(x):
    def body(previous, xt):
        scan(lambda c, y: (c, numpyro.sample("x", dist.Normal(c, 1.0), obs=y)), 0.0, xt)
        return previous, None

    scan(body, 0.0, x)


def one_series(x):
    def body(previous, xt):
        return numpyro.sample("x", dist.Normal(previous, 1.0), obs=xt), None

    scan(body, 0.0, x[:, 0])


def transformed(previous, xt):
    base = ImplicitDistribution(Partial(push, previous, xt), dist.Normal(0.0, 1.0), ())
    exp = dist.transforms.ExpTransform()
    return numpyro.sample("z", dist.TransformedDistribution(base, exp))


SPREAD = SpreadELBO({"x": GaussianNoise(0.3)})
ENUMERATED = SpreadELBO({"x": GaussianNoise(0.3)}, infer.TraceEnum_ELBO(max_plate_nesting=1))
CONTRAST = PriorContrastELBO(concat_sites(Zero(), "z"))
REFUSED = {
    "param": (
        SPREAD,
        over_time(learned_inside),
        no_guide,
        "param 'w'.*before the scan.*Python loop",
    ),
    "param, draws": (EnergyDistance(), over_time(learned_inside), no_guide, "param 'w'"),
    "mutable": (SPREAD, over_time(state_inside), no_guide, "mutable 'state'.*Python loop"),
    "guide's param": (SPREAD, no_guide, over_time(learned_inside), "param 'w'"),
    "subsample": (SPREAD, subsampled, no_guide, "plate 'N'.*Python loop"),
    "subsample, draws": (EnergyDistance(), subsampled, no_guide, "plate 'N'.*Python loop"),
    "nested": (EnergyDistance(), nested, no_guide, "scan inside scan.*Python loop"),
    "one series": (EnergyDistance(), one_series, no_guide, "site 'x' in scan.*plate inside"),
    "enumeration": (ENUMERATED, over_time(walk), over_time(normal), "enumerated.*Python loop"),
    "transform": (CONTRAST, over_time(walk), over_time(transformed), "site 'z'.*into its fn"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_stays_impossible_is_refused(what):
    loss, model, guide, words = REFUSED[what]
    if model is no_guide:
        model = over_time(lambda p, xt: numpyro.sample("x", dist.Delta(p), obs=xt))
    with pytest.raises((ValueError, NotImplementedError), match=words):
        loss_of(loss, model, guide, {"discriminator$params": Zero(), "w": 1.0})


def test_it_is_refused_in_init_already():
    loss = PriorContrastELBO(concat_sites(Zero(), "z"))
    svi = SVI(
        over_time(walk),
        loss.register(over_time(walk), over_time(transformed)),
        optax.sgd(1.0),
        loss,
    )
    with pytest.raises(NotImplementedError, match="site 'z'"):
        svi.init(KEY, X)


# --- implicit guides


def test_an_implicit_guide_that_depends_on_the_step_before_is_judged_as_a_whole():
    """The guide is Gaussian as a series: with a critic that learned nothing the value is exact."""

    exact = PriorContrastELBO(concat_sites(Zero(), "z"), num_particles=200)
    params = {"discriminator$params": Zero()}
    expected = loss_of(exact, over_time(walk), over_time(normal), params)

    class Head(eqx.Module):
        """The marginals of the guide."""

        def __call__(self, x):
            loc, var, locs, variances = jnp.zeros(N), jnp.zeros(N), [], []
            for xt in x:
                loc, var = 0.3 * xt + 0.4 * loc, 0.16 * var + 0.25
                locs.append(loc)
                variances.append(var)
            return jnp.stack(locs, -1), jnp.sqrt(jnp.stack(variances, -1))

    seen = []

    class Whole(eqx.Module):
        """The log-ratio of the series to the product of its marginals."""

        def __call__(self, features):
            seen.append(features.shape)
            return features[..., 0] * 0

    loss = PriorContrastELBO(concat_sites(Whole(), "z"), head=Head(), num_particles=200)
    params = {"discriminator$params": Whole(), "discriminator$head": Head()}
    value = loss_of(loss, over_time(walk), over_time(implicit), params)
    # What is left is the dependence between steps, N times half the log determinant.
    var = np.array([0.25, 0.29, 0.2964])
    correlated = 0.5 * np.log(0.25 / var).sum()
    assert all(shape[-1] == T for shape in seen)
    np.testing.assert_allclose(value - expected, N * correlated, atol=0.5)


def test_masked_steps_of_an_implicit_guide_do_not_count():
    mask = np.ones((T, N), bool)
    mask[1:, 0] = False
    mask[:, 1] = False

    def model(x, masks):
        def body(previous, item):
            xt, m = item
            with numpyro.plate("N", N), handlers.mask(mask=m):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=xt)
            return previous, None

        scan(body, 0.0, (x, masks))

    def guide(x, masks, fn):
        def body(previous, item):
            xt, m = item
            with numpyro.plate("N", N), handlers.mask(mask=m):
                numpyro.sample("z", fn(xt))
            return previous, None

        scan(body, 0.0, (x, masks))

    def half(xt, eps):
        return xt / 2 + 0.5**0.5 * eps

    exact = Partial(lambda xt: dist.Normal(xt / 2, 0.5**0.5))
    without = Partial(lambda xt: ImplicitDistribution(Partial(half, xt), dist.Normal(0.0, 1.0), ()))
    options = {"num_particles": 20, "num_moment_draws": 1000}
    loss = PriorContrastELBO(concat_sites(Sum(), "z"), **options)
    zero = PriorContrastELBO(concat_sites(Zero(), "z"), **options)
    x = jnp.where(mask, X, jnp.nan)
    expected = -dist.Normal(0.0, 2**0.5).log_prob(X)[mask].sum()

    def value(loss, fn):
        params = {"discriminator$params": Sum() if loss is not zero else Zero()}
        return loss.loss(KEY, params, model, lambda x, m: guide(x, m, fn), x, mask)

    np.testing.assert_allclose(value(zero, exact), expected, rtol=1e-4)
    np.testing.assert_allclose(value(zero, without), expected, atol=0.2)
    assert jnp.isfinite(value(loss, without))

    class Factors(eqx.Module):
        def __call__(self, x, masks):
            return jnp.zeros(()), jnp.eye(T)[None]

    tied = PriorContrastELBO(concat_sites(Zero(), "z"), head=Factors())
    params = {"discriminator$params": Zero(), "discriminator$head": Factors()}
    with pytest.raises(NotImplementedError, match="'z': some steps of its series are masked"):
        tied.loss(KEY, params, model, lambda x, m: guide(x, m, without), x, mask)


def test_a_critic_gets_arguments_series_by_series():
    seen = []

    class Look(eqx.Module):
        def __call__(self, values, x):
            assert values.arguments["x"].shape == (N, T)
            seen.append(np.asarray(values.arguments["x"] == X.T).all())
            return values["z"].sum(-1)

    loss = PriorContrastELBO(Look())
    params = {"discriminator$params": Look()}
    assert jnp.isfinite(loss_of(loss, over_time(walk), over_time(implicit), params))
    assert all(seen)


@pytest.mark.parametrize("adaptive", [True, False])
def test_auto_implicit_of_a_scan_model(adaptive):
    model = over_time(walk)
    guide = AutoImplicit(model, hidden=[8])
    loss = PriorContrastELBO(concat_sites(eqx.nn.MLP(T, 1, 4, 1, key=KEY)), adaptive=adaptive)
    svi = SVI(model, loss.register(model, guide), optax.adam(1e-2), loss)
    result = svi.run(KEY, 5, X, progress_bar=False)
    assert jnp.isfinite(result.losses).all()
    assert guide.sample_posterior(KEY, result.params, X)["z"].shape == (T, N)


def test_a_support_of_constants_in_scan():
    def model(previous, xt):
        z = numpyro.sample("z", dist.Uniform(-1.0, 2.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=xt)
        return previous

    def guide(previous, xt):
        fn = Partial(lambda xt, eps: jnp.tanh(xt + eps), xt)
        return numpyro.sample("z", ImplicitDistribution(fn, dist.Normal(0.0, 1.0), ()))

    loss = SemiImplicitELBO({"z": GaussianNoise(0.2)}, num_mixture=50, elbo=infer.Trace_ELBO(50))
    value = loss_of(loss, over_time(model), over_time(guide))
    evidence = (
        jnp.log(dist.Normal(0, 1).cdf(2 - X) - dist.Normal(0, 1).cdf(-1 - X)) - jnp.log(3)
    ).sum()
    assert -evidence < value < -evidence + 15


# --- cond


def switch(p, x):
    def narrow(_):
        return numpyro.sample("x", dist.Normal(p, 0.1), obs=x)

    def wide(_):
        return numpyro.sample("x", dist.Normal(-p, 2.0), obs=x)

    return cond(p > 0.5, narrow, wide, None)


def test_losses_that_compare_draws_see_into_cond():
    x = jnp.linspace(-1.0, 1.0, 50)

    def by_cond(x):
        switch(numpyro.param("p", 0.7) * jnp.ones(()), x)

    def plain(x):
        numpyro.sample("x", dist.Normal(numpyro.param("p", 0.7) * jnp.ones(50), 0.1), obs=x)

    def wide(x):
        p = numpyro.param("p", 0.7)

        def narrow(_):
            return numpyro.sample("x", dist.Normal(p * jnp.ones(50), 0.1), obs=x)

        def other(_):
            return numpyro.sample("x", dist.Normal(p * jnp.zeros(50), 1.0), obs=x)

        cond(p > 0.5, narrow, other, None)

    loss = MMD(GaussianKernel(1.0), num_particles=20)
    values = [loss.loss(KEY, {"p": jnp.array(0.7)}, model, no_guide, x) for model in (wide, plain)]
    assert values[0] > 0.1
    np.testing.assert_allclose(values[0], values[1], atol=0.02)


def test_a_learned_discrete_latent_in_cond():
    def model(x):
        p = numpyro.param("p", 0.7)

        def one(_):
            k = numpyro.sample("k", dist.Bernoulli(p).expand([4]))
            return numpyro.sample("x", dist.Normal(k, 1.0), obs=x)

        cond(jnp.array(True), one, one, None)

    def loss(p):
        return EnergyDistance().loss(KEY, {"p": p}, model, no_guide, X[0])

    with pytest.raises(NotImplementedError, match="latent site 'k'"):
        jax.grad(loss)(0.3)
