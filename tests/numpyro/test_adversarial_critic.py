# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What is asked of a critic in NumPyro: keyword data, held-out logits, clear refusals."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx
from jax import random
from numpyro.infer import SVI

from numpyro_spread import (
    MMD,
    AdversarialDivergence,
    GaussianKernel,
    GaussianNoise,
    SupportMismatchWarning,
    concat_sites,
    critic_report,
    two_player,
)
from numpyro_spread.ratio import MLPCritic

X = np.linspace(-1.0, 2.0, 12, dtype=np.float32).reshape(6, 2)


def guide(*args, **kwargs):
    pass


def model(x):
    w = numpyro.param("w", 0.5)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Delta(w * z, event_dim=1), obs=x)


def fitted(loss, model, *args, **kwargs):
    optim = two_player(optax.sgd(0.1), optax.sgd(0.1))
    svi = SVI(model, loss.register(model, guide), optim, loss)
    return svi, svi.init(random.key(0), *args, **kwargs)


class SumOfFeatures(linen.Module):
    """A net whose logits tell what it was shown: x + 1000 label."""

    @linen.compact
    def __call__(self, features):
        scale = self.param("scale", linen.initializers.ones, ())
        return scale * (features[..., 0] + 1000 * features[..., 1])


def subsampled(x, label=None):
    w = numpyro.param("w", 0.5)
    with numpyro.plate("data", len(x), subsample_size=4) as indices:
        eps = numpyro.sample("eps", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Delta(w * eps), obs=jnp.asarray(x)[indices])


@pytest.mark.parametrize("by_keyword", [False, True])
def test_arguments_are_subsampled_however_they_come(by_keyword):
    x, label = np.arange(20.0), np.arange(20.0)
    args, kwargs = ((x,), {"label": label}) if by_keyword else ((x, label), {})
    loss = AdversarialDivergence(concat_sites(SumOfFeatures(), "x", "label"))
    svi, state = fitted(loss, subsampled, *args, **kwargs)
    params = svi.get_params(state)
    data = loss.logits(random.key(1), params, subsampled, guide, *args, **kwargs).data
    assert data.shape == (4,)
    np.testing.assert_array_equal(data % 1001, 0)
    discrepancy = MMD(GaussianKernel(1.0), given=["label"])
    svi = SVI(subsampled, guide, optax.sgd(0.1), discrepancy)
    assert np.isfinite(svi.run(random.key(0), 2, *args, progress_bar=False, **kwargs).losses).all()


def test_logits_of_held_out_data_make_a_report():
    loss = AdversarialDivergence(
        concat_sites(MLPCritic((4,)), "x"), noise={"x": GaussianNoise(0.1)}
    )
    svi, state = fitted(loss, model, X)
    params = svi.get_params(state)
    logits = loss.logits(random.key(1), params, model, svi.guide, X + 1)
    assert logits.p.shape == logits.q.shape == (6,)
    again = loss.logits(random.key(2), params, model, svi.guide, X + 1)
    assert not np.array_equal(logits.p, again.p)
    report = critic_report(logits.p, logits.q, 0.5, weights_p=logits.weights_p)
    assert 0 <= report.accuracy <= 1
    with pytest.raises(ValueError, match=r"loss.register\(model, guide\)"):
        loss.logits(random.key(1), {"w": 0.5}, model, guide, X)


class Sure(linen.Module):
    """A critic that is right about all there is, and sure of it."""

    @linen.compact
    def __call__(self, values, *args):
        scale = self.param("scale", linen.initializers.ones, ())
        return scale * 100 * (values["x"] - 50)


def test_masked_data_do_not_hide_a_mismatch():
    def apart(x):
        w = numpyro.param("w", 0.1)
        with numpyro.plate("data", len(x)), numpyro.handlers.mask(mask=np.arange(len(x)) % 2 == 0):
            eps = numpyro.sample("eps", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Delta(w * eps), obs=x)

    x = np.where(np.arange(8) % 2 == 0, 100.0, np.nan)
    svi, state = fitted(AdversarialDivergence(Sure()), apart, x)

    def evaluate_often():
        jax.block_until_ready([svi.evaluate(state, x) for _ in range(30)])

    with pytest.warns(SupportMismatchWarning, match=r"noise="):
        evaluate_often()


@pytest.mark.parametrize(
    "net", [linen.Dense(1), MLPCritic(), equinox.nn.Linear(2, 1, key=random.key(0))]
)
def test_nets_on_features_are_refused(net):
    def use():
        svi, state = fitted(AdversarialDivergence(net), model, X)
        svi.update(state, X)

    with pytest.raises(TypeError, match=r"adapted by concat_sites\(net, 'x'\)"):
        use()


LINEAR = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
STATEFUL = [nnx.Dropout(0.5, rngs=nnx.Rngs(1))]
if hasattr(nnx, "SpectralNorm"):  # flax has it from 0.12 on
    STATEFUL.append(nnx.SpectralNorm(LINEAR, rngs=nnx.Rngs(1)))


@pytest.mark.parametrize("layer", STATEFUL)
def test_state_that_nobody_carries_is_refused(layer):
    net, name = nnx.Sequential(LINEAR, layer), type(layer).__name__
    with pytest.raises(NotImplementedError, match=rf"contains {name}, whose state"):
        AdversarialDivergence(concat_sites(net, "x"))


def test_mmd_runs_a_masked_model_once():
    calls = []

    def counted(x):
        calls.append(1)
        w = numpyro.param("w", 0.5)
        with numpyro.plate("data", len(x)), numpyro.handlers.mask(mask=np.arange(len(x)) > 1):
            eps = numpyro.sample("eps", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Delta(w * eps, event_dim=1), obs=x)

    loss = MMD(GaussianKernel(1.0), noise={"x": GaussianNoise(0.3)})
    assert np.isfinite(loss.loss(random.key(0), {"w": 0.5}, counted, guide, X))
    assert len(calls) == 1
