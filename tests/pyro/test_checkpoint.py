# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A resumed run in Pyro is the run that was never stopped; what cannot be resumed is refused."""

import dataclasses
import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pyro_checkpointed
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_spread import (
    AutoImplicit,
    CheckpointError,
    GaussianNoise,
    JointContrastELBO,
    PriorContrastELBO,
    SpreadELBO,
    concat_sites,
    finite_guard,
    guard_status,
    load_checkpoint,
    save_checkpoint,
)
from pyro_spread._checkpoint_state import codec
from pyro_spread._reachable_modules import find_modules
from spread_core.checkpoint_file import checkpoints, write

X = torch.linspace(-1.0, 2.0, 8)


def simple(x):
    loc = pyro.param("loc", lambda: torch.randn(()))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def latent(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def no_guide(x):
    pass


def adam(**options):
    return pyro.optim.Adam({"lr": 0.1, **options})


def plain():
    return SVI(simple, no_guide, adam(amsgrad=True), Trace_ELBO())


def scheduled(name, **options):
    def build():
        decay = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1, "momentum": 0.9}}
        return SVI(simple, no_guide, getattr(pyro.optim, name)({**decay, **options}), Trace_ELBO())

    return build


def autoguide():
    # Loc and scale start at random, and the guide is made at its first call.
    init = pyro.infer.autoguide.init_to_sample
    return SVI(latent, AutoNormal(latent, init_loc_fn=init), adam(), Trace_ELBO())


def implicit_guide():
    guide = AutoImplicit(latent, noise_dim=2, hidden=(4,), init_samples=8)
    critic = concat_sites(nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(1)), "_auto_latent")
    return SVI(latent, guide, adam(), PriorContrastELBO(critic, annealing=6, num_moment_draws=8))


def joint():
    def local(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def encoder(x):
        w = pyro.param("w", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(w * x, 1.0))

    critic = concat_sites(nn.LazyLinear(1), "x", "z")
    return SVI(local, encoder, adam(), JointContrastELBO(critic))


class Decoder(PyroModule):
    """Params of all kinds, half precision among them, and buffers of all kinds."""

    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.softplus_positive)
        self.net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.low = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x):
        self.calls += 1
        shift = self.low.float().sum() + self.frozen.detach().sum() * self.calls
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = self.net(z[:, None])[:, 0] + 1e-3 * shift
            pyro.sample("x", dist.Normal(loc, self.scale), obs=x)


def modules():
    # The one that is frozen does not start where that of the saved run did.
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(())), 1.0))

    return SVI(Decoder(), guide, adam(), Trace_ELBO())


def spread():
    net = nn.Linear(1, 2)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(net(z), event_dim=1), obs=x[:, None].expand(-1, 2))

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = pyro.param("q", torch.zeros(1)).expand(len(x), 1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True)
    return SVI(model, guide, adam(), SpreadELBO({"x": GaussianNoise(0.3)}, elbo))


def baseline():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        p = pyro.param("p", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x)):
            infer = {"baseline": {"use_decaying_avg_baseline": True}}
            pyro.sample("z", dist.Bernoulli(p), infer=infer)

    return SVI(model, guide, adam(), TraceGraph_ELBO())


RUNS = {
    "Adam": plain,
    "stepped schedule": scheduled("MultiStepLR", milestones=[1, 3]),
    "plateau": scheduled("ReduceLROnPlateau", mode="min"),
    "one cycle": scheduled("OneCycleLR", max_lr=0.2, total_steps=50),
    "restarts": scheduled("CosineAnnealingWarmRestarts", T_0=2),
    "lambda": scheduled("LambdaLR", lr_lambda=lambda epoch: 0.9**epoch),
    "autoguide": autoguide,
    "AutoImplicit": implicit_guide,
    "joint": joint,
    "modules": modules,
    "spread particles": spread,
    "baseline": baseline,
    "compiled": lambda: SVI(simple, no_guide, adam(), JitTrace_ELBO()),
    "two players": pyro_checkpointed.gan,
    "annealed contrast": pyro_checkpointed.contrast,
    "under guard": lambda: finite_guard(pyro_checkpointed.gan(), "reduce", recover_after=2),
}


def data(name):
    if name in ("two players", "under guard"):
        return torch.ones(16, 2) * X[:1]
    return torch.ones(4, 2).double() if name == "annealed contrast" else X


def start(name):
    pyro.clear_param_store()
    return RUNS[name]()


def go(svi, name, steps):
    for _ in range(steps):
        loss = svi.step(data(name) + random.random() + float(np.random.normal()))
        if hasattr(svi.optim, "step"):
            svi.optim.step(*([loss] if name == "plateau" else []))


def whole_state(svi, tmp_path):
    return save_checkpoint(tmp_path / "compared", svi, 0).read_bytes()


@pytest.mark.parametrize("name", RUNS)
def test_goes_on_as_if_it_had_never_stopped(name, tmp_path):
    svi = start(name)
    go(svi, name, 3)
    saved = save_checkpoint(tmp_path / "run", svi, 3, metadata={"epoch": (1, 2)})
    go(svi, name, 4)
    wanted = whole_state(svi, tmp_path)

    # As in a fresh process, whose random numbers are others, as is what begins with them.
    pyro.set_rng_seed(99)
    svi = start(name)
    checkpoint = load_checkpoint(tmp_path / "run", svi, data(name))
    assert (checkpoint.step, checkpoint.path) == (3, saved)
    assert checkpoint.metadata == {"epoch": (1, 2)}
    assert checkpoint.versions["torch"] == torch.__version__
    # Saved again before anything moves, it is the same file.
    assert save_checkpoint(tmp_path / "again", svi, 3, metadata={"epoch": (1, 2)}).read_bytes() == (
        saved.read_bytes()
    )
    go(svi, name, 4)
    assert whole_state(svi, tmp_path) == wanted

    # And after steps of the process, without arguments.
    load_checkpoint(saved, svi)
    go(svi, name, 4)
    assert whole_state(svi, tmp_path) == wanted


def test_what_a_guard_has_seen_is_kept(tmp_path):
    svi = finite_guard(plain(), "reduce")
    for x in (X, X * torch.nan, X):
        svi.step(x)
    save_checkpoint(tmp_path, svi, 3)
    seen = guard_status(svi)
    assert (seen.skipped, seen.step_scale) == (1, 0.5)
    pyro.clear_param_store()
    svi = finite_guard(plain(), "reduce")
    load_checkpoint(tmp_path, svi, X)
    assert guard_status(svi) == seen
    with pytest.raises(CheckpointError, match="optimizer"):
        load_checkpoint(tmp_path, plain())


def test_a_schedule_may_move_before_the_first_step(tmp_path):
    build = RUNS["stepped schedule"]
    svi = build()
    go(svi, "stepped schedule", 2)
    svi.step(X)
    save_checkpoint(tmp_path, svi, 3)
    svi.optim.step()
    svi.step(X)
    wanted = whole_state(svi, tmp_path)
    pyro.clear_param_store()
    svi = build()
    load_checkpoint(tmp_path, svi, X)
    svi.optim.step()
    svi.step(X)
    assert whole_state(svi, tmp_path) == wanted


def test_gradients_that_are_none_stay_none(tmp_path):
    # Adam moves a param with a gradient of zeros by its momentum, and leaves one without alone.
    def model(x, both):
        a, b = pyro.param("a", torch.tensor(0.0)), pyro.param("b", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(a + b if both else a + b.detach(), 1.0), obs=x)

    def build():
        pyro.clear_param_store()
        return SVI(model, lambda x, both: None, adam(), Trace_ELBO())

    for first in (True, False):
        svi = build()
        svi.step(X[0], first)
        saved = save_checkpoint(tmp_path, svi, 1)
        svi.step(X[0], False)
        wanted = pyro.param("b").item()
        assert (wanted != 0) == first
        svi = build()
        load_checkpoint(saved, svi, X[0], both=True)
        svi.step(X[0], False)
        assert pyro.param("b").item() == wanted


def test_params_keep_their_tensors(tmp_path):
    svi = start("two players")
    go(svi, "two players", 2)
    save_checkpoint(tmp_path, svi, 2)
    params = dict(pyro.get_param_store().named_parameters())
    load_checkpoint(tmp_path, svi)
    for name, param in pyro.get_param_store().named_parameters():
        assert param is params[name]


def _nets(svi):
    return [net for _, net in find_modules(svi, None)]


def refused(path, svi, *args, match, **kwargs):
    before = everything_of(svi)
    with pytest.raises(CheckpointError, match=match) as error:
        load_checkpoint(path, svi, *args, **kwargs)
    assert everything_of(svi) == before
    assert "Nothing was loaded" in str(error.value)


def everything_of(svi):
    store = pyro.get_param_store()
    loss = getattr(svi.loss_and_grads, "__self__", None)
    torch.set_printoptions(precision=12, threshold=100_000)
    try:
        return repr(
            (
                {name: (param, param.grad) for name, param in store.named_parameters()},
                svi.optim.get_state(),
                torch.get_rng_state().tolist(),
                np.random.get_state(),
                random.getstate(),
                loss.get_state() if hasattr(loss, "get_state") else None,
                [list(net.buffers()) for net in _nets(svi) if not _is_lazy(net)],
            )
        )
    finally:
        torch.set_printoptions(profile="default")


def _is_lazy(net):
    return any(nn.parameter.is_lazy(tensor) for tensor in [*net.parameters(), *net.buffers()])


@pytest.fixture
def saved(tmp_path):
    svi = plain()
    go(svi, "Adam", 3)
    return save_checkpoint(tmp_path, svi, 3)


def test_another_optimizer(saved):
    pyro.clear_param_store()
    svi = SVI(simple, no_guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
    match = r"with the optimizer PyroOptim of Adam, but this SVI has PyroOptim of SGD"
    refused(saved, svi, X, match=match)
    assert not pyro.get_param_store()


def test_another_loss(saved):
    svi = SVI(simple, no_guide, adam(), TraceGraph_ELBO())
    refused(saved, svi, X, match="with the loss Trace_ELBO, but this SVI has TraceGraph_ELBO")


@pytest.mark.parametrize("fresh", [True, False])
def test_another_model(saved, fresh):
    def other(x):
        pyro.param("loc", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(pyro.param("other", x.new_zeros(())), 1.0).to_event(0), obs=x)

    pyro.clear_param_store()
    svi = SVI(lambda x: other(x.sum()), no_guide, adam(), Trace_ELBO())
    if not fresh:
        svi.step(X)
    match = r"other params .* lacks 'other'; it has 'scale', unknown here.*clear_param_store"
    refused(saved, svi, X, match=match)
    assert bool(pyro.get_param_store()) != fresh


@pytest.mark.parametrize(
    ("scale", "constraint", "match"),
    [
        (torch.ones(2), dist.constraints.positive, r"param 'scale' is float32\[\] .* float32\[2\]"),
        (torch.ones(()).double(), dist.constraints.positive, r"float32\[\] .* float64\[\] here"),
        (
            torch.ones(()),
            dist.constraints.real,
            "'scale' is _GreaterThan in the file, but _Real",
        ),
    ],
)
def test_params_that_differ(saved, scale, constraint, match):
    def other(x):
        loc = pyro.param("loc", torch.zeros(()))
        pyro.param("scale", scale, constraint=constraint)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    pyro.clear_param_store()
    refused(saved, SVI(other, no_guide, adam(), Trace_ELBO()), X, match=match)


def test_before_the_first_step_it_needs_arguments(saved):
    pyro.clear_param_store()
    match = r"not declared yet, .*TypeError.*load_checkpoint\(directory, svi, batch\)"
    refused(saved, plain(), match=match)
    assert not pyro.get_param_store()


def test_a_damaged_file_changes_nothing(saved):
    svi = plain()
    go(svi, "Adam", 1)
    newer = save_checkpoint(saved.parent, svi, 4)
    data = bytearray(newer.read_bytes())
    data[len(data) // 2] ^= 4
    newer.write_bytes(data)
    refused(saved.parent, svi, match=f"earlier one can be loaded by its path: {saved}")
    assert newer.read_bytes() == data
    assert load_checkpoint(saved, svi).step == 3


def test_a_net_with_other_buffers(tmp_path):
    svi = start("two players")
    go(svi, "two players", 2)
    save_checkpoint(tmp_path, svi, 2)
    svi.loss.__self__.discriminator.register_buffer("extra", torch.zeros(3))
    refused(tmp_path, svi, match=r"other buffers of nets .* lacks 'discriminator.extra'")


def hidden_net():
    net = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    # Behind an object of a library, which is not searched.
    holder = torch.autograd.graph.saved_tensors_hooks(net, net)

    def model(x):
        own = pyro.module("net", holder.pack_hook)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(own(x[:, None])[:, 0], 1.0), obs=x)

    return SVI(model, no_guide, adam(), Trace_ELBO()), net


def test_nets_that_are_not_found_are_asked_for(tmp_path):
    svi, net = hidden_net()
    svi.step(X)
    with pytest.raises(ValueError, match=r"params 'net\$\$\$0.weight'.*modules={'net': net}"):
        save_checkpoint(tmp_path / "run", svi, 1)
    assert not (tmp_path / "run").exists()
    save_checkpoint(tmp_path / "run", svi, 1, modules={"net": net})
    svi.step(X)
    wanted = net[1].running_mean.clone()
    pyro.clear_param_store()
    svi, net = hidden_net()
    load_checkpoint(tmp_path / "run", svi, X, modules={"net": net})
    assert not torch.equal(net[1].running_mean, wanted)
    svi.step(X)
    assert torch.equal(net[1].running_mean, wanted)


def test_params_of_an_earlier_net_are_found_out(tmp_path):
    def build():
        net = nn.Linear(1, 1)

        def model(x):
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(net(x[:, None])[:, 0], 1.0), obs=x)

        return SVI(model, no_guide, adam(), Trace_ELBO())

    build().step(X)
    svi = build()  # in the same store
    svi.step(X)
    with pytest.raises(ValueError, match=r"earlier net, call pyro.clear_param_store\(\) first"):
        save_checkpoint(tmp_path, svi, 1)


def test_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match=r"param store is empty, .*take one step of the SVI first"):
        save_checkpoint(tmp_path / "run", plain(), 0)
    assert not (tmp_path / "run").exists()


def test_local_params_are_refused(tmp_path):
    svi = SVI(simple, no_guide, adam(), Trace_ELBO())
    svi.step(X)
    svi.optim([torch.ones((), requires_grad=True)])
    with pytest.raises(ValueError, match="params that are not in the param store"):
        save_checkpoint(tmp_path, svi, 1)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"net": nn.Linear(1, 1)}, r"metadata/net cannot be saved: torch.nn.*Linear"),
        ([torch.ones(2).to_sparse()], "metadata/0 cannot be saved: .*sparse"),
        (torch.ones(2, dtype=torch.complex128), "no place for torch.complex128"),
        (np.array(["a"]), "no place for <U1"),
    ],
)
def test_what_cannot_be_saved(tmp_path, metadata, match):
    svi = plain()
    svi.step(X)
    with pytest.raises(TypeError, match=match):
        save_checkpoint(tmp_path / "run", svi, 1, metadata=metadata)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "dtype", ["bool", "bfloat16", "float16", "float64", "int8", "uint32", "complex64"]
)
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
def test_metadata_of_every_type(tmp_path, dtype, shape):
    svi = plain()
    svi.step(X)
    value = torch.ones(shape).to(getattr(torch, dtype))
    save_checkpoint(tmp_path, svi, 1, metadata={"t": value, "n": np.float64(0.5)})
    found = load_checkpoint(tmp_path, svi).metadata
    assert found["t"].dtype == value.dtype
    assert torch.equal(found["t"], value)
    assert type(found["n"]) is np.float64


def test_a_checkpoint_that_is_kept_out_of_nothing_else(tmp_path):
    svi = plain()
    for step in range(5):
        svi.step(X)
        save_checkpoint(tmp_path, svi, step, keep=2)
    assert [path.name[9:] for path in checkpoints(tmp_path)] == [
        "step-3.safetensors",
        "step-4.safetensors",
    ]


@pytest.mark.parametrize("function", [save_checkpoint, load_checkpoint])
def test_an_svi_is_asked_for(tmp_path, function):
    arguments = (tmp_path, plain) if function is load_checkpoint else (tmp_path, plain, 1)
    with pytest.raises(TypeError, match=r"`svi` must be a pyro.infer.SVI, got function"):
        function(*arguments)


def test_versions_of_libraries(tmp_path, monkeypatch):
    svi = plain()
    svi.step(X)
    save_checkpoint(tmp_path, svi, 1)
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.warns(UserWarning, match=r"other library versions \(torch .*, now 1.0\)"):
        assert load_checkpoint(tmp_path, svi).step == 1


def test_a_warning_that_is_an_error_comes_before_the_load(saved, monkeypatch):
    svi = plain()
    svi.step(X)
    monkeypatch.setattr(torch, "__version__", "1.0")
    before = everything_of(svi)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="other library versions"):
            load_checkpoint(saved, svi)
    assert everything_of(svi) == before


class Counting(Trace_ELBO):
    """A loss with a state of its own, which it does not always take back."""

    count, accepts = 0, True

    def get_state(self):
        return {"count": self.count}

    def set_state(self, state):
        if not self.accepts:
            raise RuntimeError("not now")
        self.count = state["count"]


class Extra(nn.Linear):
    def __init__(self, name):
        super().__init__(1, 1)
        self.name, self.extra, self.accepts = name, 0, True

    def get_extra_state(self):
        return {"extra": self.extra}

    def set_extra_state(self, state):
        self.extra = state["extra"]
        if not self.accepts:
            raise RuntimeError("not now")


@pytest.mark.parametrize("culprit", ["loss", "module"])
def test_a_load_that_fails_late_changes_nothing(tmp_path, culprit):
    pyro.clear_param_store()
    first, second, loss = Extra("first"), Extra("second"), Counting()

    def model(x):
        loc = pyro.module("first", first)(x[:, None]) + pyro.module("second", second)(x[:, None])
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc[:, 0], 1.0), obs=x)

    svi = finite_guard(SVI(model, no_guide, adam(), loss), "skip")
    svi.step(X)
    save_checkpoint(tmp_path, svi, 1)
    for _ in range(4):
        svi.step(X)
    svi.step(torch.full_like(X, float("nan")))
    first.extra = second.extra = loss.count = 5

    def seen():
        return everything_of(svi), first.extra, second.extra, loss.count, guard_status(svi).skipped

    before = seen()
    (loss if culprit == "loss" else second).accepts = False
    with pytest.raises(RuntimeError, match="not now"):
        load_checkpoint(tmp_path, svi)
    loss.accepts = second.accepts = True
    assert seen() == before
    load_checkpoint(tmp_path, svi)
    assert (first.extra, second.extra, loss.count, guard_status(svi).skipped) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("nonsense", torch.float32), ("numpy", torch.bfloat16)]
)
def test_arrays_of_no_known_kind(tmp_path, kind, dtype):
    tensor = torch.ones(2, dtype=dtype)
    sealed = dataclasses.replace(codec(), to_tensor=lambda where, value: (kind, tensor))
    write(sealed, tmp_path, 1, {"params": X}, None, {}, None)
    with pytest.raises(CheckpointError, match=f"malformed, there is no array of kind '{kind}'"):
        load_checkpoint(tmp_path, plain(), X)


def test_a_guard_that_the_saved_run_did_not_have(saved):
    refused(saved, finite_guard(plain()), X, match="load first, and guard the run after that")
    svi = plain()
    load_checkpoint(saved, svi, X)
    finite_guard(svi).step(X)


def test_a_load_that_fails_is_no_bad_step(tmp_path):
    svi = finite_guard(plain(), "skip")
    go(svi, "Adam", 1)
    save_checkpoint(tmp_path, svi, 1)
    pyro.clear_param_store()
    svi = finite_guard(plain(), "skip")
    with pytest.raises(CheckpointError, match="other params than this SVI's"):
        load_checkpoint(tmp_path, svi, torch.full_like(X, float("nan")))
    assert guard_status(svi).skipped == 0
