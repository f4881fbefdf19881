# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Where noise is drawn and what for: reshaped and ragged sites, data in containers, subsamples."""

import collections

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceGraph_ELBO
from pyro.infer.inspect import get_dependencies, get_model_relations

from pyro_spread import DeterministicGenerator, GaussianNoise, ImplicitDistribution, SpreadELBO
from pyro_spread import spread as spread_handler

K = GaussianNoise(0.3)


def no_guide(*args, **kwargs):
    """No latents."""


@pytest.mark.parametrize("shape", [(8, 1, 4, 4), (8, 16), (8, 2, 8)])
def test_a_vector_scale_has_the_shape_of_the_site(shape):
    scale, seen = torch.linspace(0.01, 3.0, 16), []

    def model(x):
        with pyro.plate("data", 8):
            value = x.reshape(-1, 16)
            seen.append(value)
            pyro.sample("x", dist.Delta(torch.zeros(16), event_dim=1), obs=value)

    loss = SpreadELBO({"x": GaussianNoise(scale)})
    values = [loss.loss(model, no_guide, torch.zeros(shape)) for _ in range(200)]
    expected = -dist.Normal(0.0, scale).log_prob(seen[-1]).sum()
    assert values[-1] == pytest.approx(float(expected), rel=1e-5)
    spread = torch.stack(seen[-200:]).reshape(-1, 16).std(0)
    torch.testing.assert_close(spread, scale, rtol=0.15, atol=0)


def test_the_next_kernel_on_the_same_model_may_be_another_one():
    def model(x):
        with pyro.plate("data", 8):
            value = x.reshape(-1, 16)
            pyro.sample("x", dist.Delta(torch.zeros(16), event_dim=1), obs=value)

    for scale in (0.3, torch.linspace(0.01, 3.0, 16), 0.5):
        assert SpreadELBO({"x": GaussianNoise(scale)}).loss(model, no_guide, torch.zeros(8, 4, 4))


def series(x):
    with pyro.plate("data", len(x)):
        for t in range(x.shape[1]):
            pyro.sample(f"x_{t}", dist.Delta(torch.zeros(len(x))), obs=x[:, t])


def test_patterns_stand_for_sites_that_come_and_go():
    loss = SpreadELBO({"x_*": K})
    for length in (9, 7):
        assert loss.loss(series, no_guide, torch.randn(4, length)) > 0
    with spread_handler(noise={"x_*": K}):
        series(torch.randn(4, 3))


def test_what_patterns_and_missing_names_are_told():
    with pytest.raises(ValueError, match=r"named 'y_\*', but.*\['x_0', 'x_1'\]"):
        SpreadELBO({"x_*": K, "y_*": K}, data={"y_*": "x"}).loss(series, no_guide, torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"the site 'x_2'.*\{'x_\*': kernel\}, or a callable"):
        SpreadELBO(dict.fromkeys(["x_0", "x_1", "x_2"], K)).loss(series, no_guide, torch.ones(4, 2))
    kernels = {"x_*": GaussianNoise(0.3), "*_0": GaussianNoise(0.2)}
    with pytest.raises(ValueError, match="both take their data"):
        SpreadELBO(kernels).loss(series, no_guide, torch.ones(4, 2))


Batch = collections.namedtuple("Batch", ["image", "label"])


@pytest.mark.parametrize(
    ("batch", "where"),
    [
        ({"image": torch.ones(4, 2), "label": 1}, "batch.image"),
        ({"image": torch.ones(4, 2), "label": 1}, ("batch", "image")),
        ([torch.ones(4, 2), 1], "batch.0"),
        ((torch.ones(4, 2), 1), ("batch", 0)),
        (Batch(torch.ones(4, 2), 1), "batch.image"),
    ],
)
def test_data_are_found_inside_of_a_batch(batch, where):
    seen = []

    def model(batch):
        image = batch["image"] if isinstance(batch, dict) else batch[0]
        seen.append(batch)
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Delta(torch.zeros(2), event_dim=1), obs=image)

    assert SpreadELBO({"x": K}, data={"x": where}).loss(model, no_guide, batch) > 0
    assert type(seen[0]) is type(batch)
    clean = batch["image"] if isinstance(batch, dict) else batch[0]
    assert torch.equal(clean, torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"'none' inside of a model argument.*looked for in has"):
        SpreadELBO({"x": K}, data={"x": ("batch", "none")}).loss(model, no_guide, batch)


class Counted(GaussianNoise):
    drawn = 0

    def draw(self, x):
        Counted.drawn += x.numel()
        return super().draw(x)


def test_a_dict_without_a_way_into_it_is_told_of_one():
    def model(batch):
        pyro.sample("x", dist.Delta(torch.zeros(3), event_dim=1), obs=batch["image"])

    with pytest.raises(ValueError, match=r"type dict.*with a dot: data=\{'x': 'batch\.image'\}"):
        SpreadELBO({"x": K}).loss(model, no_guide, {"image": torch.ones(3)})


def test_noise_is_drawn_where_the_indices_point():
    x, seen = torch.randn(1000, 2), []

    def model(x):
        with pyro.plate("data", len(x), subsample_size=10) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            seen.append((index, x[index]))
            pyro.sample("x", dist.Delta(z[:, None].expand(-1, 2), event_dim=1), obs=x[index])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=10) as index:
            seen.append((index, x[index]))
            pyro.sample("z", dist.Normal(x[index].mean(1), 1.0))

    loss = SpreadELBO({"x": Counted(0.3)})
    loss.loss(model, guide, x)
    Counted.drawn = 0
    pyro.set_rng_seed(3)
    first = loss.loss(model, guide, x)
    assert Counted.drawn == 20
    (index, in_guide), (same, in_model) = seen[-2:]
    assert torch.equal(index, same)
    assert torch.equal(in_guide, in_model)
    assert 0 < (in_model - x[index]).abs().max() < 3
    pyro.set_rng_seed(3)
    assert loss.loss(model, guide, x) == first

    def reads_all(x):
        with pyro.plate("data", len(x), subsample_size=10):
            pyro.sample("z", dist.Normal(x.mean(), 1.0))

    loss.loss(model, reads_all, x)
    Counted.drawn = 0
    loss.loss(model, reads_all, x)
    assert Counted.drawn == 2000  # whoever asks for all gets it, and every row once


@pytest.mark.parametrize("kernel", [K, GaussianNoise(torch.tensor(0.3))])
def test_provenance_goes_through_a_shared_scale(kernel):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Delta(z[:, None].expand(-1, 3), event_dim=1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5))

    x = torch.randn(10, 3)
    assert SpreadELBO({"x": kernel}, TraceGraph_ELBO()).loss_and_grads(model, guide, x) > 0
    found = get_dependencies(spread_handler(model, {"x": kernel}), (x,))
    assert set(found["posterior_dependencies"]["z"]) == {"z", "x"}


def test_structure_may_be_asked_of_what_has_no_density():
    def model(x):
        w = pyro.param("w", torch.tensor(2.0))
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", ImplicitDistribution(lambda eps: w * eps[..., 0], base, ()))
            pyro.sample("x", DeterministicGenerator(2 * z), obs=x)

    relations = get_model_relations(model, (torch.zeros(3),))
    assert relations["sample_sample"] == {"z": [], "x": ["z"]}
    assert relations["sample_param"] == {"z": ["w"], "x": []}
    assert get_dependencies(model, (torch.zeros(3),))["prior_dependencies"]["x"].keys() == {
        "x",
        "z",
    }
    with pytest.raises(NotImplementedError, match="has no likelihood"):
        DeterministicGenerator(torch.zeros(3)).log_prob(torch.zeros(3))
