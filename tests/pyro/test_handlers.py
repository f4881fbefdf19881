# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The ``spread`` handler: which sites it touches, and under whom it works."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_spread import (
    ChannelNoise,
    DeterministicGenerator,
    GaussianNoise,
    LaplaceNoise,
    SpreadELBO,
    spread,
)

NOISE = {"x": GaussianNoise(0.3)}


def model(x=None, wrap=dist.Delta):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4):
        return pyro.sample("x", wrap(2 * z), obs=x)


def module_level(x):
    return model(x)


X = torch.tensor([0.1, 0.5, -0.3, 1.0])


def trace_of(fn, *args, **kwargs):
    trace = poutine.trace(fn).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace.nodes


@pytest.mark.parametrize("wrap", [dist.Delta, DeterministicGenerator])
def test_both_spellings(wrap):
    def with_spelling(*args):
        with spread(noise=NOISE):
            return model(*args)

    for fn in (spread(model, NOISE), spread(model, noise=NOISE), with_spelling):
        nodes = trace_of(fn, X, wrap)
        z = nodes["z"]["value"]
        expected = dist.Normal(2 * z, 0.3).log_prob(X)
        torch.testing.assert_close(nodes["x"]["log_prob"], expected)
        assert nodes["x"]["value"] is X
        assert isinstance(nodes["z"]["fn"], dist.Normal)


def test_only_named_observed_sites_change():
    def two(x, y):
        pyro.sample("x", dist.Delta(torch.zeros(4)).to_event(1), obs=x)
        pyro.sample("y", dist.Normal(torch.zeros(4), 1.0).to_event(1), obs=y)
        pyro.sample("w", dist.Delta(torch.ones(())))

    nodes = trace_of(spread(two, NOISE), X, X)
    torch.testing.assert_close(nodes["x"]["log_prob"], dist.Normal(0, 0.3).log_prob(X).sum())
    torch.testing.assert_close(nodes["y"]["log_prob"], dist.Normal(0, 1.0).log_prob(X).sum())
    assert isinstance(nodes["w"]["fn"], dist.Delta)


def test_normal_likelihood_gets_wider():
    nodes = trace_of(spread(lambda: pyro.sample("x", dist.Normal(0.0, 0.4), obs=X[0]), NOISE))
    assert nodes["x"]["fn"].scale == pytest.approx(0.5)


def test_unobserved_sites_stay_clean():
    for draw in (spread(model, NOISE)(), Predictive(spread(model, NOISE), num_samples=1)()["x"][0]):
        assert torch.equal(draw, draw[:1].expand(4))


def test_plates_masks_and_scales_are_kept():
    mask = torch.tensor([True, False, True, True])

    def masked(x):
        with pyro.plate("data", 8, subsample_size=4), poutine.mask(mask=mask):
            pyro.sample("x", dist.Delta(torch.zeros(())), obs=x)

    nodes = trace_of(poutine.scale(spread(masked, NOISE), 0.5), X)
    expected = dist.Normal(0, 0.3).log_prob(X) * mask * (8 / 4) * 0.5
    torch.testing.assert_close(nodes["x"]["log_prob"], expected)


def test_nested_plates():
    def nested(x):
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("x", dist.Delta(torch.zeros(5), event_dim=1), obs=x)

    x = torch.randn(2, 3, 5)
    nodes = trace_of(spread(nested, NOISE), x)
    torch.testing.assert_close(nodes["x"]["log_prob"], dist.Normal(0, 0.3).log_prob(x).sum(-1))


def test_deterministic_sites_are_left_alone():
    def recorded(x):
        pyro.deterministic("mean", 2 * x)
        pyro.factor("penalty", -x.sum())
        model(x)

    nodes = trace_of(spread(recorded, NOISE), X)
    assert torch.equal(nodes["mean"]["value"], 2 * X)
    assert nodes["penalty"]["log_prob"] == -X.sum()


def test_shared_infer_dict_is_not_touched():
    infer = {"_do_not_score": False}

    def shared(x):
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Delta(torch.zeros(())), obs=x, infer=infer)

    loss = SpreadELBO(NOISE)
    for _ in range(2):
        loss.loss(shared, lambda x: None, X)
    assert infer == {"_do_not_score": False}


def test_inside_condition_and_outside():
    nodes = trace_of(spread(pyro.condition(model, {"x": X}), NOISE))
    assert torch.isfinite(nodes["x"]["log_prob"]).all()
    with pytest.raises(ValueError, match=r"site 'x'.*Put spread outermost: spread\(condition\("):
        pyro.condition(spread(model, NOISE), {"x": X})()


def test_conditioning_a_latent_outside_is_fine():
    nodes = trace_of(pyro.condition(spread(model, NOISE), {"z": torch.tensor(0.5)}), X)
    torch.testing.assert_close(nodes["x"]["log_prob"], dist.Normal(1.0, 0.3).log_prob(X))


def test_no_such_site():
    with pytest.raises(ValueError, match=r"'y', but the model has no sample site.*\['x'\]"):
        spread(model, {"x": GaussianNoise(0.3), "y": GaussianNoise(0.3)})(X)


@pytest.mark.parametrize("bad", [None, {}, GaussianNoise(0.3), [("x", GaussianNoise(0.3))],
                                 {1: GaussianNoise(0.3)}])  # fmt: skip
def test_noise_is_a_dict(bad):
    with pytest.raises(TypeError, match="noise must be a dict from the name of an observed site"):
        spread(model, bad)
    with pytest.raises(TypeError, match="noise must be a dict from the name of an observed site"):
        SpreadELBO(bad)


def test_values_of_the_dict_are_kernels():
    with pytest.raises(TypeError, match=r"site 'x': expected a noise kernel.*0\.3 of type float"):
        spread(model, {"x": 0.3})


def test_not_callable():
    with pytest.raises(TypeError, match="not callable"):
        spread(NOISE)


@pytest.mark.parametrize(
    ("noise", "value", "fn", "error", "message"),
    [
        (GaussianNoise(0.3), torch.zeros(4).long(), dist.Delta(X), TypeError, "integer type"),
        (ChannelNoise.symmetric(2, 0.1), X, dist.Delta(X), TypeError, "class labels"),
        (GaussianNoise(torch.ones(3)), X, dist.Delta(X), ValueError, "scale of shape"),
        (LaplaceNoise(0.3), X, dist.Normal(X, 1.0), NotImplementedError, "of Normal"),
    ],
)
def test_errors_name_the_site(noise, value, fn, error, message):
    def one():
        with pyro.plate("data", 4):
            pyro.sample("pixels", fn, obs=value)

    with pytest.raises(error, match=f"site 'pixels': .*{message}"):
        spread(one, {"pixels": noise})()


def test_an_error_leaves_the_handler_usable():
    handler = spread(noise=NOISE)
    with pytest.raises(ZeroDivisionError), handler:
        1 / 0  # noqa: B018
    with handler:
        model(X)
    assert len(pyro.poutine.runtime._PYRO_STACK) == 0


def test_a_spread_model_keeps_name_and_pickles():
    fn = spread(module_level, NOISE)
    assert fn.__name__ == "module_level"
    twin = pickle.loads(pickle.dumps(fn))
    assert torch.isfinite(trace_of(twin, X)["x"]["log_prob"]).all()


def test_nuts():
    # z ~ N(0, 1), y_i = 2 z + 0.3 eps: a Gaussian posterior with known moments.
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(spread(model, NOISE)), num_samples=150, warmup_steps=100, disable_progbar=True)
    mcmc.run(X)
    z = mcmc.get_samples()["z"]
    precision = 1 + 4 * 4 / 0.09
    mean, sd = 2 * X.sum() / 0.09 / precision, precision**-0.5
    assert abs(z.mean() - mean) < 5 * sd / 50**0.5
    assert z.std() == pytest.approx(float(sd), rel=0.35)


def test_auto_normal_and_predictive():
    pyro.set_rng_seed(0)
    guide = AutoNormal(spread(model, NOISE))
    svi = SVI(
        spread(model, NOISE), guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO(num_particles=4)
    )
    for _ in range(300):
        svi.step(X)
    precision = 1 + 4 * 4 / 0.09
    mean = float(2 * X.sum() / 0.09 / precision)
    assert guide.median(X)["z"].item() == pytest.approx(mean, abs=0.05)
    clean = Predictive(model, guide=guide, num_samples=50)()["x"]
    assert torch.equal(clean, clean[:, :1].expand(50, 4))
    assert abs(clean.mean() - 2 * mean) < 0.1


def test_a_python_number_may_be_observed():
    def number_model():
        pyro.sample("x", dist.Delta(torch.tensor(0.0)), obs=0.5)

    trace = pyro.poutine.trace(spread(number_model, {"x": GaussianNoise(0.3)})).get_trace()
    assert trace.nodes["x"]["fn"].scale == torch.tensor(0.3)
