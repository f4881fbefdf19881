# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Noise that is learned, of several levels or moves, unrolled critics, critics by name and penalties:
each with masks, plates, subsampling, checkpoints, guards and compiled steps.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyro
import pytest
import torch
from flax import linen
from twins import NumPyro, Pyro, in_both, no_guide

from pyro_spread import compiled
from spread_core.use_of_data import Learned

NUMBER = 12
X = np.random.default_rng(5).normal(size=(NUMBER, 2)) * [1.5, 0.5]
SCALES = np.array([0.4, 0.6])


@dataclass(frozen=True)
class Piece:
    """
    A loss that uses one of them.

    :param make: from a backend and its critics to the loss.
    :param guided: whether it scores a likelihood, under a guide.
    :param told: whether critic or guide ask for the level.
    :param noise: whether it has learned noise, moved by an optimiser of its own.
    :param each: whether its noise is one for each element, or for each datum, however many dims of
        it are dims of the event.
    """

    make: Callable
    guided: bool = False
    told: bool = False
    noise: bool = False
    each: bool = True


def gaussian(b):
    return b.package.GaussianNoise(b.array(SCALES))


def levels(b):
    return b.package.MultiLevelNoise(gaussian(b), [0.5, 2.0])


def halving(b):
    return b.package.annealed(gaussian(b), lambda step: 0.9**step)


def residual(b):
    torch.manual_seed(2)
    return b.pick(
        lambda: torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)),
        lambda: linen.Sequential([linen.Dense(4), jnp.tanh, linen.Dense(2)]),
    )()


def with_covariance(b):
    return b.package.learned(gaussian(b), "trace")


def with_mean(b):
    return b.package.learned(gaussian(b), mean=residual(b))


def bounded(kernel, **options):
    def make(b, critic):
        return b.package.SpreadELBO({"x": kernel(b)})

    return Piece(make, guided=True, **options)


def judged(noise=None, name="AdversarialDivergence", told=False, piece=None, **options):
    def make(b, critic):
        made = {option: value(b.package) for option, value in options.items()}
        sites = ("x", "x_level") if told else ("x",)
        given = {} if noise is None else {"noise": {"x": noise(b)}}
        return getattr(b.package, name)(critic(b, *sites), **given, **made)

    return Piece(make, told=told, **(piece or {}))


LEARNED, OF_DATUM = {"noise": True}, {"each": False}
PIECES = {
    "learned": judged(with_covariance, piece=LEARNED),
    "learned mean": judged(with_mean, piece=LEARNED),
    "learned, bound": bounded(with_covariance, noise=True),
    "learned mean, bound": bounded(with_mean, noise=True),
    "levels": judged(levels, piece=OF_DATUM),
    "levels told": judged(levels, told=True, piece=OF_DATUM),
    "levels, bound": bounded(levels),
    "levels told, bound": bounded(levels, told=True),
    "annealed": judged(halving),
    "annealed, bound": bounded(halving),
    "adaptive": judged(lambda b: b.package.adaptive(gaussian(b), speed=0.1)),
    "unrolled": judged(unroll=lambda p: 2, regularizer=lambda p: p.R2(0.3)),
    "hinge": judged(name="HingeCritic", regularizer=lambda p: p.R1(0.3) + p.R2(0.3)),
    "least squares": judged(name="LeastSquaresCritic", regularizer=lambda p: p.R2(0.3)),
    "relativistic": judged(name="RelativisticCritic"),
    "sum of penalties": judged(
        regularizer=lambda p: p.R1(0.3) + p.R2(0.3) + p.GradientPenalty(0.1)
    ),
}
JUDGED = [name for name, piece in PIECES.items() if not piece.guided]


def critic(b, *sites):
    torch.manual_seed(1)
    width = 2 + (len(sites) > 1)
    net = b.pick(
        lambda: torch.nn.Sequential(
            torch.nn.Linear(width, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
        ),
        lambda: linen.Sequential([linen.Dense(4), jnp.tanh, linen.Dense(1)]),
    )()
    return b.package.concat_sites(net, *sites)


def program(b, keep=None, rows=None, parts=False):
    """A model that scales its draws, with one circumstance."""

    def model(x):
        size = NUMBER if rows is not None else len(x)
        w = b.param("w", np.array([0.7, 0.9]))
        dim = -2 if parts else -1
        with b.plate("data", size, subsample_size=rows, dim=dim) as index:
            x = x if rows is None else x[index]
            if parts:
                with b.plate("parts", 2, dim=-1):
                    z = b.sample("z", b.dist.Normal(b.array(0.0), 1.0))
                    b.sample("x", b.dist.Delta(w * z), obs=x)
                return
            z = b.sample("z", b.dist.Normal(b.array(np.zeros(2)), 1.0).to_event(1))
            fn = b.dist.Delta(w * z, event_dim=1)
            b.sample("x", fn if keep is None else fn.mask(b.array(keep)), obs=x)

    return model


def guide_of(b, told, rows=None):
    def infer(x, level):
        size = NUMBER if rows is not None else len(x)
        with b.plate("data", size, subsample_size=rows) as index:
            x = x if rows is None else x[index]
            loc = b.param("v", 0.3) * x
            if level is not None:
                level = level if rows is None else level[index]
                loc = loc + b.param("u", 0.1) * level[:, None]
            b.sample("z", b.dist.Normal(loc, 0.5).to_event(1))

    def guide(x):
        infer(x, None)

    def asking(x, x_level=None):
        infer(x, x_level)

    return asking if told else guide


class InPyro:
    """A run of SVI: its steps, and all that they move."""

    def __init__(self, name, guard=False, made=lambda loss: loss, **circumstance):
        pyro.clear_param_store()
        piece = PIECES[name]
        self.loss = made(piece.make(Pyro, critic))
        adam = functools.partial(pyro.optim.Adam, {"lr": 1e-2})
        self.svi = self._svi(piece, adam, **circumstance)
        if guard:
            self.svi = Pyro.package.finite_guard(self.svi, "skip")
        pyro.set_rng_seed(3)

    def _svi(self, piece, adam, **circumstance):
        model = program(Pyro, **circumstance)
        guide = guide_of(Pyro, piece.told, circumstance.get("rows")) if piece.guided else no_guide
        own = {"noise": adam()} if piece.noise else {}
        if not piece.guided:
            optim = Pyro.package.two_player(adam(), adam(), **own)
        else:
            optim = Pyro.package.two_player(adam(), None, **own) if own else adam()
        return pyro.infer.SVI(model, self.loss.register(model, guide), optim, self.loss)

    def step(self, x=X):
        return self.svi.step(torch.tensor(x))

    def moving(self):
        params = {n: p.detach().numpy().copy() for n, p in pyro.get_param_store().items()}
        return params | {"state": dict(self.loss.get_state().get("_moves", {}))}

    def skipped(self):
        return Pyro.package.guard_status(self.svi).skipped

    def save(self, directory):
        Pyro.package.save_checkpoint(directory, self.svi, 1)

    def load(self, directory):
        Pyro.package.load_checkpoint(directory, self.svi, torch.tensor(X))


class InNumPyro:
    """The same; steps are compiled."""

    def __init__(self, name, guard=False, **circumstance):
        piece = PIECES[name]
        loss, model = piece.make(NumPyro, critic), program(NumPyro, **circumstance)
        guide = no_guide
        if piece.guided:
            guide = guide_of(NumPyro, piece.told, circumstance.get("rows"))
        adam = functools.partial(optax.adam, 1e-2)
        own = {"noise": adam()} if piece.noise else {}
        if not piece.guided:
            optim = NumPyro.package.two_player(adam(), adam(), **own)
        else:
            optim = NumPyro.package.two_player(adam(), None, **own) if own else adam()
        self.svi = NumPyro.infer.SVI(model, loss.register(model, guide), optim, loss)
        if guard:
            self.svi = NumPyro.package.finite_guard(self.svi, "skip")
        self.state = self.svi.init(jax.random.key(3), jnp.asarray(X))
        self.update = jax.jit(self.svi.update)

    def step(self, x=X):
        self.state, value = self.update(self.state, jnp.asarray(x))
        return float(value)

    def moving(self):
        params = self.svi.get_params(self.state), self.state.mutable_state or {}
        return jax.tree.map(np.asarray, params)

    def skipped(self):
        return NumPyro.package.guard_status(self.svi, self.state).skipped

    def save(self, directory):
        NumPyro.package.save_checkpoint(directory, self.svi, self.state, 1)

    def load(self, directory):
        self.state, _ = NumPyro.package.load_checkpoint(directory, self.svi, self.state)


RUNS = {Pyro: InPyro, NumPyro: InNumPyro}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same(one, other, **tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 0, "atol": 0} | tolerance))


def cases(quick, names=PIECES):
    """Every piece in both backends; of NumPyro, which compiles, most are slow."""
    marked = []
    for b in (Pyro, NumPyro):
        for name in names:
            marks = () if name in quick or (b is Pyro) else pytest.mark.slow
            marked.append(pytest.param(b, name, marks=marks, id=f"{b.__name__}-{name}"))
    return pytest.mark.parametrize(("b", "name"), marked)


@cases([], JUDGED)
def test_masked_data_move_nobody(b, name):
    keep, found = np.arange(NUMBER) != 3, []
    for value in (0.0, np.nan):
        x = X.copy()
        x[3] = value
        run = RUNS[b](name, keep=keep)
        found.append([run.step(x) for _ in range(2)])
        found[-1].append(run.moving())
    assert np.isfinite(found[0][:2]).all()
    assert_same(*found)


# Each of the plate's elements gets a level of its own, so that a critic is told two more numbers.
@cases([], [name for name in JUDGED if name != "levels told"])
def test_a_datum_may_have_plates_inside(b, name):
    """Its critic sees the whole datum, whether its dims are of a plate or of the event."""
    values = []
    for parts in (False, True):
        run = RUNS[b](name, parts=parts)
        values.append([run.step() for _ in range(3)])
    assert np.isfinite(values).all()
    if PIECES[name].each:
        np.testing.assert_allclose(*values, rtol=1e-9)


@cases([])
def test_a_plate_may_subsample_inside_the_model(b, name):
    piece = PIECES[name]
    if piece.guided and piece.told:
        with pytest.raises(ValueError, match=r"site 'x'.*levels of shape.*take part of the data"):
            RUNS[b](name, rows=5).step()
        return
    run = RUNS[b](name, rows=5)
    assert np.isfinite([run.step() for _ in range(3)]).all()


@in_both
def test_a_step_that_is_broken_off_and_repeated_counts_once(b, monkeypatch):
    """A plate that subsamples shows in the first run of the model that noise is for rows."""
    repeated = []
    monkeypatch.setattr(Learned, "__init__", lambda self, *args: repeated.append(args))
    run = RUNS[b]("annealed, bound", rows=5)
    run.step(), run.step()
    assert repeated
    state = run.moving()["state"] if b is Pyro else run.moving()[1]
    assert list(state.values()) == [2]


@cases(["adaptive"])
def test_a_run_goes_on_from_a_checkpoint(b, name, tmp_path):
    run = RUNS[b](name)
    run.step(), run.step()
    run.save(tmp_path)
    wanted = [run.step() for _ in range(2)], run.moving()
    other = RUNS[b](name)
    other.load(tmp_path)
    assert_same(([other.step() for _ in range(2)], other.moving()), wanted)


@cases(["levels told, bound"])
def test_a_guard_skips_a_step_and_nothing_moves(b, name):
    run = RUNS[b](name, guard=True)
    run.step()
    before = run.moving()
    run.step(X * np.nan)
    assert_same(run.moving(), before)
    assert run.skipped() == 1
    assert np.isfinite(run.step())
    after = run.moving()
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
    )


FEW = "learned mean, bound", "levels told"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in PIECES]
)
def test_a_compiled_step_of_pyro_is_the_step(name):
    found = []
    for made in (lambda loss: loss, functools.partial(compiled, backend="eager")):
        run = InPyro(name, made=made)
        found.append([run.step() for _ in range(4)])
        found[-1].append(run.moving())
    assert_same(*found, rtol=1e-9, atol=1e-12)


@in_both
@pytest.mark.parametrize("name", ["HingeCritic", "LeastSquaresCritic", "RelativisticCritic"])
@pytest.mark.parametrize("noise", ["learned", "adaptive"])
def test_critics_by_name_do_not_play_noise(b, name, noise):
    made = {"learned": with_mean, "adaptive": lambda b: b.package.adaptive(gaussian(b))}[noise](b)
    error = {"learned": NotImplementedError, "adaptive": TypeError}[noise]
    with pytest.raises(error, match=r"site 'x': noise .*AdversarialDivergence"):
        getattr(b.package, name)(critic(b, "x"), noise={"x": made})
