# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the losses tell other ranks, and that a process that is alone tells nobody anything."""

import importlib
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer
from pyro.nn import PyroModule
from torch import distributed, nn

from pyro_spread import (
    MMD,
    AdversarialDivergence,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    SpreadELBO,
    concat_sites,
)
from pyro_spread.infer import _ranks

EXAMPLES = Path(__file__).parents[2] / "examples" / "pyro"


class Two(_ranks.Ranks):
    """The first of two ranks, of which the other one says the same, or what it is given."""

    def __init__(self, other=None):
        super().__init__(None)
        object.__setattr__(self, "other", other)

    size, rank = 2, 0

    def all_gather(self, values):
        return [values, values if self.other is None else self.other.to(values)]

    def sum(self, values):
        return sum(self.all_gather(values.detach()))

    def broadcast(self, values):
        return values


@pytest.fixture
def two():
    """The running loss is on one of two ranks."""
    token = _ranks._current.set(Two())
    yield
    _ranks._current.reset(token)


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    file = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=file, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(z + self.shift), obs=x)


class NoGuide(nn.Module):
    def forward(self, x):
        pass


class Guide(nn.Module):
    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))


class Enumerated(nn.Module):
    def forward(self, x):
        k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Delta(k.expand(2, len(x))), obs=x)


def test_alone_the_part_of_the_mean_is_all_of_it():
    assert _ranks.share(None, torch.zeros(()), 3) == 1.0
    assert _ranks.num_ranks() == 1
    samples, weights = torch.randn(3, 2), torch.rand(3)
    assert _ranks.all_gather_rows(samples, weights) == (samples, weights)
    assert _ranks.broadcast_from_first(samples, samples) is samples
    assert _ranks.whole_gradient(samples) is samples


def test_a_process_group_of_one_rank(one_process):
    ranks = _ranks.Ranks(None)
    x = torch.randn(3, 2, requires_grad=True)
    assert (ranks.size, ranks.rank) == (1, 0)
    torch.testing.assert_close(ranks.sum(x), x.detach())
    torch.testing.assert_close(ranks.broadcast(x), x.detach())
    rows = ranks.gather_rows(x, [3])
    torch.testing.assert_close(rows, x)
    assert rows.requires_grad
    token = _ranks._current.set(ranks)
    assert _ranks.share(torch.tensor([1.0, 0.5]), x, 2) == 1.0
    assert _ranks.all_gather_rows(x, None)[1] is None
    _ranks._current.reset(token)


def test_one_rank_is_as_good_as_no_process_group(one_process):
    x = torch.randn(8)
    losses = []
    for wrap in (lambda module: module, nn.parallel.DistributedDataParallel):
        pyro.clear_param_store()
        module = MMD(GaussianKernel(1.0))(Model(), NoGuide())
        pyro.set_rng_seed(1)
        losses.append(wrap(module)(x))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("weights", "others", "expected"),
    [
        (None, 1.0, 2 * 3 / (3 + 1)),
        (torch.tensor([1.0, 0.5, 0.0]), 0.5, 2 * 1.5 / (1.5 + 0.5)),
        (torch.zeros(3), 2.0, 0.0),
    ],
)
def test_the_part_of_the_mean(weights, others, expected):
    token = _ranks._current.set(Two(torch.tensor(others)))
    share = _ranks.share(weights, torch.zeros(()), 3)
    _ranks._current.reset(token)
    torch.testing.assert_close(share, torch.tensor(expected))


def test_rows_of_unequal_shards_keep_their_order_and_the_own_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    other = torch.randn(4, 3)
    rows = Two(other).gather_rows(x, [2, 4])
    torch.testing.assert_close(rows, torch.cat([x, other]))
    rows.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(2, 3))


def test_a_loss_that_all_ranks_share_has_the_whole_gradient(two):
    x = torch.tensor(3.0, requires_grad=True)
    loss = _ranks.whole_gradient(x**2)
    loss.backward()
    assert (loss.item(), x.grad.item()) == (9.0, 12.0)


def test_under_svi_a_process_keeps_to_itself(monkeypatch):
    # SVI averages no gradients: another rank's samples would be half of a story.
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda group=None: 2)
    svi = infer.SVI(Model(), NoGuide(), pyro.optim.Adam({"lr": 1e-2}), EnergyDistance())
    assert svi.step(torch.randn(4)) < float("inf")


def test_importance_weights_of_all_data_are_refused(two):
    elbo = infer.TraceTailAdaptive_ELBO(num_particles=2, vectorize_particles=True)
    loss = SpreadELBO({"x": GaussianNoise(0.3)}, elbo)
    with pytest.raises(NotImplementedError, match="TraceTailAdaptive_ELBO under several ranks"):
        loss(Model(), Guide())(torch.randn(4))


def test_global_enumeration_is_refused(two):
    elbo = infer.TraceEnum_ELBO(max_plate_nesting=1)
    module = SpreadELBO({"x": GaussianNoise(0.3)}, elbo)(Enumerated(), NoGuide())
    with pytest.raises(NotImplementedError, match="'k' is enumerated outside of all plates"):
        module(torch.randn(4))


def test_batch_normed_critics_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda group=None: 2)
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    module = AdversarialDivergence(concat_sites(net))(Model(), NoGuide())
    with pytest.raises(
        ValueError, match=r"layer 'discriminator.net.1' \(BatchNorm1d\) .*SyncBatchNorm"
    ):
        module(torch.randn(4))
    with torch.no_grad():  # nothing is told to others, and nothing is trained
        module(torch.randn(4))
    assert _ranks.ranks() is None


@pytest.mark.parametrize("equal", [True, False])
def test_ranks_with_one_random_state_are_warned_of(equal):
    ranks = Two(None if equal else torch.tensor(0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _ranks._compare_noise(ranks, torch.device("cpu"))
    said = [str(warning.message) for warning in caught]
    assert len(said) == equal
    assert all("ranks 0, 1 hold equal random states" in text for text in said)


def test_a_subsample_may_be_the_data_themselves():
    """As in plate("data", N, subsample=x), also where the shard is all of the data."""

    class Subsampled(Model):
        def forward(self, x, extra):
            with pyro.plate("data", 4, subsample=x):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Delta(z + self.shift), obs=x)

    def guide(x, extra):
        with pyro.plate("data", 4, subsample=x):
            pyro.sample("z", dist.Normal(x, 1.0))

    x = torch.randn(4)
    critic = concat_sites(nn.Linear(2, 1), "x", "extra")
    AdversarialDivergence(critic).loss(Subsampled(), None, x, torch.randn(4))
    SpreadELBO({"x": GaussianNoise(0.3)}).loss(Subsampled(), guide, x, None)


def test_lightning_is_asked_for_by_name(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setitem(sys.modules, "lightning", None)
    # Dask's package has the name of the example: whichever comes first is what others would find.
    before = {name: module for name, module in sys.modules.items() if is_distributed(name)}
    for name in before:
        del sys.modules[name]
    with pytest.raises(SystemExit, match=r"pip install 'pyro-spread\[pyro,lightning\]'"):
        importlib.import_module("distributed_lightning")
    for name in list(filter(is_distributed, sys.modules)):
        del sys.modules[name]
    sys.modules.update(before)


def is_distributed(name):
    return name.partition(".")[0] == "distributed"


def test_unrolled_critics_are_refused(two):
    loss = AdversarialDivergence(concat_sites(nn.Linear(1, 1)), unroll=2)
    with pytest.raises(NotImplementedError, match=r"unroll=k under several ranks: .* unroll=0"):
        loss(Model(), NoGuide())(torch.randn(4))
