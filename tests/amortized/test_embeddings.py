# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Learned embeddings and summaries of amortised guides, in both backends."""

import equinox
import flax.linen
import numpy as np
import pytest
import torch
from embedded_models import BACKENDS, Recurrent, image, ragged, shaped, vector
from flax import nnx

X = np.float32([0.9, 0.4, 1.3, 0.6, 0.2])
MASK = np.array([True, True, True, True, False])
QUICK = {"progress_bar": False, "seed": 0}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


@pytest.mark.parametrize("summary", ["moments", "attention"])
def test_a_step_of_svi_moves_every_param_of_the_embedding(backend, summary):
    model = ragged(backend)
    guide = backend.spread.AutoAmortized(
        model, observed="x", embedding="mlp", summary=summary, ensemble=2, init_samples=50
    )
    before, after = backend.steps(model, guide, 2, MASK, backend.array(X))
    assert set(before) == set(after)
    assert any("queries" in name for name in before) == (summary == "attention")
    for name, value in before.items():
        moved = np.abs(np.asarray(after[name]) - np.asarray(value)).reshape(2, -1).max(1)
        assert (moved > 1e-7).all(), name


def test_members_have_embeddings_of_their_own(backend):
    model = vector(backend)
    guide = backend.spread.AutoAmortized(model, embedding=backend.dense(5, 3), ensemble=2)
    _, after = backend.steps(model, guide, 2, backend.array(X))
    for name, value in after.items():
        assert value.shape[0] == 2
        assert np.abs(np.asarray(value[0]) - np.asarray(value[1])).max() > 1e-6, name


@pytest.mark.parametrize("summary", ["moments", "attention"])
def test_order_and_padding_do_not_matter_and_other_sizes_work(backend, summary):
    guide = backend.spread.AutoAmortized(
        ragged(backend), observed="x", embedding="mlp", summary=summary, init_samples=50
    )
    values = {"scale": backend.array(np.float32([0.5, 1.0, 2.0]))}
    score = backend.scored(guide, values, MASK, backend.array(X))
    known = score(MASK, backend.array(X))
    order = np.array([3, 0, 2, 4, 1])
    np.testing.assert_allclose(score(MASK[order], backend.array(X[order])), known, atol=1e-5)
    hidden = np.where(MASK, X, np.nan)
    np.testing.assert_allclose(score(MASK, backend.array(hidden)), known, atol=1e-5)
    longer = np.float32([*X[:4], np.nan, np.nan, np.nan])
    padded = score(np.arange(7) < 4, backend.array(longer))
    np.testing.assert_allclose(padded, known, atol=1e-5)
    other = score(MASK, backend.array(X * np.float32([1, 1, 1, 3, 1])))
    assert np.abs(other - known).max() > 1e-3
    assert np.isfinite(score(np.zeros(3, bool), backend.array(np.zeros(3, np.float32)))).all()


@pytest.mark.parametrize("options", [{"summary": "attention"}, {"embedding": "mlp"}, {}])
def test_what_is_masked_gives_no_gradient_of_nan(backend, options):
    guide = backend.spread.AutoAmortized(ragged(backend), observed="x", init_samples=50, **options)
    hidden = backend.array(np.where(MASK, X, np.float32("nan")))
    values = {"scale": backend.array(np.float32([0.5, 2.0]))}
    found = [np.asarray(value) for value in backend.gradients(guide, values, MASK, hidden)]
    assert all(np.isfinite(value).all() for value in found)
    assert sum((value != 0).any() for value in found) > 2


def test_a_posterior_with_an_embedding_is_right_and_kept(backend, tmp_path):
    model = vector(backend)
    module = backend.dense(5, 3)
    guide = backend.spread.AutoAmortized(model, observed="x", embedding=module, ensemble=2)
    posterior = backend.spread.amortize(
        model, guide=guide, num_simulations=2000, max_steps=200, **QUICK
    )
    x = backend.array(X)
    draws = np.asarray(posterior.sample(x, num_samples=4000)["mean"])
    assert abs(draws.mean() - X.sum() / 6) < 0.06
    assert abs(draws.std() / 6**-0.5 - 1) < 0.1
    path = posterior.save(tmp_path)
    kind = backend.spread.AmortizedPosterior
    with pytest.raises(ValueError, match=r"Pass the module .* load\(path, model, embedding=module"):
        kind.load(path, model)
    again = kind.load(path, model, embedding=module)
    values = {"mean": backend.array(np.float32([0.2, 0.6]))}
    np.testing.assert_allclose(
        np.asarray(again.log_prob(values, x)), np.asarray(posterior.log_prob(values, x)), rtol=1e-6
    )


def test_words_rebuild_by_themselves(backend, tmp_path):
    model = ragged(backend)
    guide = backend.spread.AutoAmortized(
        model, observed="x", embedding={"x": "mlp"}, summary="attention"
    )
    posterior = backend.spread.amortize(
        model, MASK, guide=guide, num_simulations=300, max_steps=5, **QUICK
    )
    again = backend.spread.AmortizedPosterior.load(posterior.save(tmp_path), model)
    values, x = {"scale": backend.array(np.float32([0.5, 1.0]))}, backend.array(X)
    np.testing.assert_allclose(
        np.asarray(again.log_prob(values, MASK, x)),
        np.asarray(posterior.log_prob(values, MASK, x)),
        rtol=1e-6,
    )


def test_an_image_is_read_by_a_convolution(backend):
    model = image(backend)  # of more numbers than a regression sees
    guide = backend.spread.AutoAmortized(model, observed="x", embedding=backend.convolution())
    posterior = backend.spread.amortize(
        model, guide=guide, num_simulations=2000, max_steps=300, **QUICK
    )
    draws = np.asarray(posterior.sample(backend.array(np.ones((8, 8), np.float32)))["mean"])
    assert abs(draws.mean() - 1.0) < 0.3
    assert draws.std() < 0.5


def test_a_series_is_read_by_a_recurrent_net():
    pyro = BACKENDS["pyro"]
    model = vector(pyro)
    guide = pyro.spread.AutoAmortized(model, embedding=Recurrent(), ensemble=2)
    before, after = pyro.steps(model, guide, 2, torch.as_tensor(X))
    for name, value in before.items():
        assert np.abs(after[name] - value).max() > 1e-6, name


@pytest.mark.slow
@pytest.mark.parametrize("summary", ["moments", "attention"])
def test_learned_summaries_see_what_mean_and_spread_do_not(backend, summary):
    model = shaped(backend)
    table = backend.spread.simulate(model, 4000, observed=["x"], seed=1, progress_bar=False)

    def loss(**options):
        guide = backend.spread.AutoAmortized(model, observed="x", exchangeable=True, **options)
        found = backend.spread.amortize(model, guide=guide, simulations=table, **QUICK)
        return found.record["held_out"]

    assert loss(embedding="mlp", summary=summary) < loss() - 0.2


def test_errors(backend):
    guide_of, model = backend.spread.AutoAmortized, vector(backend)
    x = backend.array(X)
    with pytest.raises(ValueError, match="summary must be 'moments' or 'attention', got 'mean'"):
        guide_of(model, summary="mean")
    with pytest.raises(TypeError, match=r"embedding must be None, 'mlp', a .*, got 'cnn'"):
        guide_of(model, embedding="cnn")
    with pytest.raises(ValueError, match=r"embedding names 'y', which is no data site.*\['x'\]"):
        backend.scored(guide_of(model, embedding={"y": "mlp"}), {}, x)
    plated = guide_of(ordered(backend), embedding=backend.dense(1, 2), exchangeable=False)
    with pytest.raises(ValueError, match=r"site 'x' made \(3, 5, 2\) of .* \(3, 5, 1\).*\(3, K\)"):
        backend.scored(plated, {}, backend.array(X[:, None]))
    two = guide_of(two_sites(backend), observed=["x", "y"], embedding=backend.dense(1, 2))
    with pytest.raises(ValueError, match=r"several data sites, \['x', 'y'\].*embedding=\{'x'"):
        backend.scored(two, {}, x[0], x[0])


def ordered(backend):
    """A plate of vectors."""

    def model(x=None):
        mean = backend.ppl.sample("mean", backend.dist.Normal(0.0, 1.0))
        with backend.ppl.plate("items", 5, dim=-1):
            one = mean[..., None] * backend.xp.ones(1)
            backend.ppl.sample("x", backend.dist.Normal(one, 1.0).to_event(1), obs=x)

    return model


def two_sites(backend):
    """Two measurements of a normal mean."""

    def model(x=None, y=None):
        mean = backend.ppl.sample("mean", backend.dist.Normal(0.0, 1.0))
        backend.ppl.sample("x", backend.dist.Normal(mean, 1.0), obs=x)
        backend.ppl.sample("y", backend.dist.Normal(mean, 1.0), obs=y)

    return model


class Dropped(torch.nn.Linear):
    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x), 0.5)


class Centred(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class OfNnx(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


def of_linen(layer):
    return flax.linen.Sequential([flax.linen.Dense(3), layer])


COUPLED = {
    "pyro": {
        "BatchNorm1d": torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2)),
        "Dropout": torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(5, 2)),
        "Dropped": Dropped(5, 9),
        "Centred": Centred(5, 2),
    },
    "numpyro": {
        "batch normalisation": of_linen(flax.linen.BatchNorm(use_running_average=False)),
        "dropout": of_linen(flax.linen.Dropout(0.1, deterministic=False)),
        "BatchNorm": OfNnx(nnx.BatchNorm(5, rngs=nnx.Rngs(0))),
        "Dropout": equinox.nn.Sequential([equinox.nn.Dropout(0.1)]),
    },
}


@pytest.mark.parametrize(("name", "part"), [(n, part) for n in COUPLED for part in COUPLED[n]])
def test_layers_that_mix_a_batch_or_draw_are_refused(name, part):
    guide = BACKENDS[name].spread.AutoAmortized(
        vector(BACKENDS[name]), embedding=COUPLED[name][part]
    )
    message = (
        f"embedding of site 'x' has a layer, {part}, whose output .*Use LayerNorm or GroupNorm"
    )
    with pytest.raises(ValueError, match=message):
        BACKENDS[name].scored(guide, {}, BACKENDS[name].array(X))


def test_layers_that_draw_in_training_only_are_allowed():
    numpyro = BACKENDS["numpyro"]
    for net in (
        OfNnx(nnx.Dropout(0.1, deterministic=True)),
        equinox.nn.Dropout(0.1, inference=True),
        flax.linen.Dropout(0.1, deterministic=True),
    ):
        numpyro.spread.AutoAmortized(vector(numpyro), embedding=net).data_sites(X)
