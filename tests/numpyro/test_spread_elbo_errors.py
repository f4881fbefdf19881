# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the spread handler and SpreadELBO refuse in NumPyro, with the way out."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.util import log_density
from numpyro.primitives import mutable
from numpyro_linear import ADAM, NOISE, D, N, S, data, evaluate, no_guide, point

from numpyro_spread import (
    ChannelNoise,
    DeterministicGenerator,
    GaussianNoise,
    ImplicitDistribution,
    LowRankGaussianNoise,
    SpreadELBO,
    spread,
)


def observing(fn):
    def model(x):
        value, distribution = fn(x)
        numpyro.sample("x", distribution, obs=value)

    return model


def zeros(x, event_dim=2):
    return dist.Delta(jnp.zeros(jnp.shape(x)), event_dim=event_dim)


def two_sites(x):
    numpyro.sample("x", zeros(x), obs=x)
    numpyro.sample("w", zeros(x).expand((2,)).mask(jnp.ones(2, bool)), obs=x)


CLEAN = np.asarray(data())
BAD_MODELS = {
    "unspread_delta": (two_sites, NOISE, ValueError, "site 'w' is an observed Delta"),
    "unspread_generator": (
        observing(lambda x: (x, DeterministicGenerator(x, 2))),
        {"y": GaussianNoise(S)}, ValueError, "site 'x' is an observed Delta"
    ),
    "no_such_site": (
        observing(lambda x: (x, zeros(x))), NOISE | {"w": GaussianNoise(S)}, ValueError,
        "no sample site of that name"
    ),
    "not_observed": (observing(lambda x: (None, zeros(x))), NOISE, ValueError, "does not observe"),
    "clean": (observing(lambda x: (CLEAN, zeros(x))), NOISE, ValueError, "something other"),
    "clean_jnp": (
        observing(lambda x: (jnp.asarray(CLEAN)[:3], zeros(x[:3]))), NOISE, ValueError,
        "something other"
    ),
    "scaled": (observing(lambda x: (x / 2, zeros(x))), NOISE, ValueError, "something other"),
    "rounded": (
        observing(lambda x: (x.round(), zeros(x))), NOISE, ValueError, "something other"
    ),
    "mixed": (
        observing(lambda x: (jnp.concatenate([x[:3], CLEAN[3:]]), zeros(x))), NOISE, ValueError,
        "something other"
    ),
    "transposed": (
        observing(lambda x: (x.T, zeros(x.T))), {"x": GaussianNoise(jnp.full((1, 1), S))},
        ValueError, "something other"
    ),
    "already": (spread(observing(lambda x: (x, zeros(x))), NOISE), NOISE, ValueError, "already"),
    "event_shape": (
        observing(lambda x: (x, zeros(x, 1))), {"x": LowRankGaussianNoise(S, np.ones((N * D, 1)))},
        ValueError, "site 'x': .*does not fit the event shape"
    ),
    "no_event": (
        observing(lambda x: (x, zeros(x, 0))), {"x": LowRankGaussianNoise(S, np.ones((D, 1)))},
        ValueError, "site 'x': .*to_event"
    ),
    "scale": (
        observing(lambda x: (x, zeros(x))), {"x": GaussianNoise(jnp.ones(2))}, ValueError,
        "site 'x': .*does not fit"
    ),
    "no_rule": (
        observing(lambda x: (x, dist.Gamma(jnp.ones(x.shape), 1.0))), NOISE, NotImplementedError,
        "site 'x': GaussianNoise has no exact spread of Gamma"
    ),
    "integer_output": (
        observing(lambda x: (x, dist.Delta(jnp.zeros(x.shape, int)))), NOISE, TypeError,
        "site 'x': .*integer type"
    ),
    "implicit": (
        observing(
            lambda x: (x, ImplicitDistribution(jnp.tanh, dist.Normal(jnp.zeros(x.shape), 1.0), ()))
        ),
        NOISE, NotImplementedError, "no exact spread of ImplicitDistribution"
    ),
}  # fmt: skip


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_cannot_be_spread_are_refused(name, jit):
    bad, noise, error, text = BAD_MODELS[name]
    loss = SpreadELBO(noise, data={} if len(noise) == 1 else {"x": "x", "w": "w"})
    kwargs = {"w": data()} if "w" in noise else {}
    guide = lambda *args, **kwargs: None  # noqa: E731
    if kwargs:
        inner = bad
        bad = lambda x, w: inner(x)  # noqa: E731

    def run(x):
        return loss.loss(random.key(0), {}, bad, guide, x, **kwargs)

    with pytest.raises(error, match=text):
        (jax.jit(run) if jit else run)(data())


def with_nan():
    return data().at[0, 0].set(jnp.nan)


BAD_DATA = {
    "nan": (with_nan, NOISE, ValueError, "'x' contains NaN or inf"),
    "inf": (lambda: data().at[0, 0].set(jnp.inf), NOISE, ValueError, "NaN or inf"),
    "none": (lambda: None, NOISE, ValueError, "argument 'x' is of type NoneType"),
    "list": (lambda: [1.0, 2.0], NOISE, ValueError, "argument 'x' is of type list"),
    "integer": (lambda: jnp.ones((N, D), int), NOISE, TypeError, "site 'x': .*integer type"),
    "float_label": (data, {"x": ChannelNoise.symmetric(3, 0.1)}, TypeError, "class labels"),
    "label": (
        lambda: jnp.array([0, 3]), {"x": ChannelNoise.symmetric(3, 0.1)}, ValueError, r"0\.\.2"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "when"),
    # A registered guide runs without data, as Predictive runs it: None is refused by the loss.
    [(n, w) for n in BAD_DATA for w in ("init", "loss", "run") if (n, w) != ("none", "init")],
)
def test_bad_data_are_refused(name, when):
    make, noise, error, text = BAD_DATA[name]
    loss = SpreadELBO(noise)

    def harmless(x):
        numpyro.param("g", 0.0)

    svi = SVI(harmless, loss.register(harmless, harmless), ADAM, loss)
    if when == "run":  # an unregistered guide: found when svi.run traces its first step
        svi = SVI(harmless, harmless, ADAM, loss)
    call = {
        "init": lambda x: svi.init(random.key(0), x),
        "run": lambda x: svi.run(random.key(0), 1, x, progress_bar=False),
        "loss": lambda x: loss.loss(random.key(0), {}, harmless, harmless, x),
    }[when]
    with pytest.raises(error, match=text):
        call(make())


def test_type_errors_show_under_jit_too():
    loss = SpreadELBO(NOISE)
    with pytest.raises(TypeError, match="integer type"):
        jax.jit(lambda x: evaluate(loss, point, no_guide, None, x))(jnp.ones((N, D), int))


def test_arguments_that_cannot_be_found():
    loss = SpreadELBO(NOISE, data={"x": "images"})
    with pytest.raises(ValueError, match="'images' carries it"):
        evaluate(loss)
    both = SpreadELBO(NOISE | {"w": GaussianNoise(S)})
    with pytest.raises(ValueError, match="would both take their data"):
        evaluate(both, two_sites, no_guide, {}, data())
    with pytest.raises(ValueError, match="without arguments"):
        SpreadELBO(NOISE).loss(random.key(0), {}, lambda: None, lambda: None)


def test_bad_losses_and_noise_are_refused():
    class Unknown(Trace_ELBO.__bases__[0]):
        pass

    from numpyro.contrib.einstein.stein_loss import SteinLoss

    for noise in ({}, None, [("x", GaussianNoise(S))], {1: GaussianNoise(S)}):
        with pytest.raises(TypeError, match="dict from the name"):
            SpreadELBO(noise)
        with pytest.raises(TypeError, match="dict from the name"):
            spread(point, noise)
    with pytest.raises(TypeError, match="site 'x': expected a noise kernel"):
        SpreadELBO({"x": 0.3})
    for elbo in (SteinLoss(), "trace", Trace_ELBO):
        with pytest.raises(TypeError, match="must be an instance of"):
            SpreadELBO(NOISE, elbo)
    for elbo in (Unknown(), SpreadELBO(NOISE)):
        with pytest.raises(NotImplementedError, match="cannot wrap"):
            SpreadELBO(NOISE, elbo)
    with pytest.raises(ValueError, match="noise has no kernel"):
        SpreadELBO(NOISE, data={"w": "x"})


def test_handler_errors():
    def inner(y=None):
        numpyro.sample("x", dist.Delta(jnp.zeros(3), event_dim=1), obs=y)

    late = handlers.condition(spread(inner, NOISE), {"x": jnp.ones(3)})
    with pytest.raises(ValueError, match="outside of spread"):
        log_density(late, (), {}, {})
    early = spread(handlers.condition(inner, {"x": jnp.ones(3)}), NOISE)
    assert np.isfinite(log_density(early, (), {}, {})[0])
    with pytest.raises(ValueError, match="spread already"):
        log_density(spread(spread(inner, NOISE), NOISE), (jnp.ones(3),), {}, {})
    with pytest.raises(TypeError, match=r"site 'x': .*integer type"):
        log_density(spread(inner, NOISE), (jnp.ones(3, int),), {}, {})
    with pytest.raises(ValueError, match="no sample site of that name"):
        handlers.seed(spread(inner, {"w": GaussianNoise(S)}), 0)(jnp.ones(3))
    # The stack is clean after an error.
    assert np.isfinite(log_density(spread(inner, NOISE), (jnp.ones(3),), {}, {})[0])


def test_mutable_state_works_with_one_particle_and_is_refused_with_more():
    def counting(x):
        count = mutable("count", {"steps": jnp.array(0)})
        count["steps"] = count["steps"] + 1
        point(x)

    loss = SpreadELBO(NOISE)
    svi = SVI(counting, loss.register(counting, no_guide), ADAM, loss)
    result = svi.run(random.key(0), 4, data(), progress_bar=False)
    assert result.state.mutable_state["count"]["steps"] == 5  # SVI.init runs the model once

    loss = SpreadELBO(NOISE, Trace_ELBO(num_particles=2))
    svi = SVI(counting, loss.register(counting, no_guide), ADAM, loss)
    with pytest.raises(NotImplementedError, match="num_particles=2"):
        svi.run(random.key(0), 1, data(), progress_bar=False)


def test_deterministic_sites_and_factors_are_not_observed_deltas():
    def decorated(x):
        numpyro.deterministic("mean", x.mean())
        numpyro.factor("weight", jnp.array(1.5))
        point(x)

    plain, loss = evaluate(SpreadELBO(NOISE)), evaluate(SpreadELBO(NOISE), decorated)
    np.testing.assert_allclose(loss, plain - 1.5, rtol=1e-6)


def test_no_check_is_left_in_the_compiled_step():
    """The decision about what was observed is made on the jaxpr, and leaves nothing in it."""

    def indexed(x):
        with numpyro.plate("data", N, subsample_size=N):
            numpyro.sample("x", dist.Delta(jnp.zeros((N, D)), event_dim=1), obs=x.reshape(N, D))

    def direct(x):
        with numpyro.plate("data", N, subsample_size=N):
            numpyro.sample("x", dist.Delta(jnp.zeros((N, D)), event_dim=1), obs=x)

    def count(model):
        def run(x):
            return SpreadELBO(NOISE).loss(random.key(0), {}, model, no_guide, x)

        return len(jax.make_jaxpr(run)(data()).jaxpr.eqns)

    assert count(indexed) <= count(direct) + 1
