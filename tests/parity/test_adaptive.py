# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose scale follows the accuracy of the critic, in both backends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pyro
import pytest
import torch
from flax import linen
from twins import NumPyro, Pyro, assert_refused_alike, in_both, no_guide

import numpyro_spread
from pyro_spread import compiled

SPEED = 0.1
X = np.full(64, 5.0, np.float32)


def model_at_minus_five(b):
    def model(x):
        w = b.param("w", -5.0)
        with b.plate("data", len(X)):
            b.sample("x", b.dist.Delta(w + b.np.zeros(len(X))), obs=x)

    return model


class Slope(torch.nn.Module):
    """A critic that is always right, or always wrong."""

    def __init__(self, slope, offset):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(slope))
        self.offset = offset

    def forward(self, features):
        return (features[..., :1] * self.slope + self.offset).squeeze(-1)


class FlaxSlope(linen.Module):
    """Its twin."""

    slope: float
    offset: float

    @linen.compact
    def __call__(self, features):
        slope = self.param("slope", lambda key: jnp.asarray(self.slope))
        return features[..., 0] * slope + self.offset


def adaptive(b, *args, speed=SPEED, **options):
    return b.package.adaptive(b.package.GaussianNoise(0.1), *args, speed=speed, **options)


def loss_of(b, slope, noise, pi=0.5, offset=0.0, **options):
    critic = b.package.concat_sites(b.pick(Slope(slope, offset), FlaxSlope(slope, offset)), "x")
    return b.package.AdversarialDivergence(
        critic, b.package.JSPi(pi), {"x": noise}, regularizer=None, **options
    )


class InPyro:
    """A run of SVI that tells the logarithm of the multiplier."""

    def __init__(self, loss):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        optim = pyro.optim.SGD({"lr": 1e-9})
        self.loss = loss
        self.svi = pyro.infer.SVI(model_at_minus_five(Pyro), no_guide, optim, loss)
        self.x = torch.tensor(X)

    def step(self):
        self.svi.step(self.x)
        return self.state()

    def state(self):
        return self.loss.get_state()["_moves"]["x"]

    def save(self, directory):
        Pyro.package.save_checkpoint(directory, self.svi, 1)

    def load(self, directory):
        Pyro.package.load_checkpoint(directory, self.svi, self.x)


class InNumPyro:
    """The same; steps are compiled."""

    def __init__(self, loss):
        model = model_at_minus_five(NumPyro)
        guide = loss.register(model, no_guide)
        self.svi = numpyro.infer.SVI(model, guide, optax.sgd(1e-9), loss)
        self.x = jnp.asarray(X)
        self.svi_state = self.svi.init(jax.random.key(0), self.x)
        self.update = jax.jit(self.svi.update)

    def step(self):
        self.svi_state, _ = self.update(self.svi_state, self.x)
        return self.state()

    def state(self):
        return float(self.svi_state.mutable_state["x$adaptive"])

    def save(self, directory):
        NumPyro.package.save_checkpoint(directory, self.svi, self.svi_state, 1)

    def load(self, directory):
        self.svi_state, _ = NumPyro.package.load_checkpoint(directory, self.svi, self.svi_state)


RUNS = {Pyro: InPyro, NumPyro: InNumPyro}


@in_both
def test_the_scale_rises_under_a_perfect_critic_and_falls_under_one_that_is_wrong(b):
    limits = (0.8, math.exp(0.35))
    rises = RUNS[b](loss_of(b, 1.0, adaptive(b, limits=limits)))
    assert [rises.step() for _ in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.35], abs=1e-6)
    falls = RUNS[b](loss_of(b, -1.0, adaptive(b, limits=limits)))
    found = [falls.step() for _ in range(3)]
    assert found == pytest.approx([-0.1, -0.2, math.log(0.8)], abs=1e-6)


@in_both
def test_between_the_ends_it_moves_in_proportion(b):
    for accuracy, set_point, moved in [
        (0.75, 0.75, 0.0),
        (0.875, 0.75, 0.5),
        (0.6, 0.75, -0.6),
        (0.9, 0.8, 0.5),
        (0.65, 0.8, -0.5),
        (0.2, 0.75, -1.0),
    ]:
        kernel = adaptive(b, set_point)
        for state, right in ((0.3, accuracy), (b.np.asarray(0.3), b.np.asarray(accuracy))):
            found = float(kernel._advanced(state, right))
            assert found == pytest.approx(0.3 + SPEED * moved, abs=1e-6)


@in_both
def test_the_accuracy_is_that_of_the_log_ratio_whatever_pi_is(b):
    """With logit = log(9) + 0 a critic knows nothing, though under pi = .9 it is right in 90 %."""
    offset = math.log(9.0)
    run = RUNS[b](loss_of(b, 0.0, adaptive(b), pi=0.9, offset=offset - 1e-3))
    assert run.step() == pytest.approx(-SPEED, abs=1e-6)
    run = RUNS[b](loss_of(b, 1.0, adaptive(b), pi=0.9, offset=offset))
    assert run.step() == pytest.approx(SPEED, abs=1e-6)


@pytest.mark.slow
@in_both
def test_particles_count_one_step_and_a_checkpoint_has_the_scale(b, tmp_path):
    run = RUNS[b](loss_of(b, 1.0, adaptive(b), num_particles=2))
    run.step(), run.step()
    assert run.state() == pytest.approx(2 * SPEED, abs=1e-6)
    run.save(tmp_path)
    other = RUNS[b](loss_of(b, 1.0, adaptive(b), num_particles=2))
    other.load(tmp_path)
    assert other.step() == pytest.approx(3 * SPEED, abs=1e-6)


def test_evaluation_and_failed_steps_leave_the_scale():
    run = InPyro(loss_of(Pyro, 1.0, adaptive(Pyro)))
    run.step()
    run.svi.evaluate_loss(run.x)
    with pytest.raises(ValueError, match="NaN"):
        run.svi.step(torch.full((len(X),), math.nan))
    assert run.state() == pytest.approx(SPEED)


@pytest.mark.slow
def test_compiled_steps_adapt():
    loss = compiled(loss_of(Pyro, 1.0, adaptive(Pyro)), backend="eager")
    run = InPyro(loss)
    assert [run.step() for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])


@in_both
def test_the_kernel_that_it_has_become_can_be_read(b):
    noise = adaptive(b)
    loss = loss_of(b, 1.0, noise)
    run = RUNS[b](loss)
    run.step(), run.step()
    if b is Pyro:
        kernel = loss.noise["x"].kernel()
        with pytest.raises(TypeError, match=r"does not move: a loss moves a copy.*kernel\(\)"):
            noise.kernel()
    else:
        kernel = noise.kernel(run.svi_state.mutable_state["x$adaptive"])
    assert type(kernel) is b.package.GaussianNoise
    assert float(kernel.scale) == pytest.approx(0.1 * math.exp(2 * SPEED), rel=1e-6)


def test_ranks_are_refused(monkeypatch):
    from pyro_spread.infer import _critic_loss

    run = InPyro(loss_of(Pyro, 1.0, adaptive(Pyro)))
    monkeypatch.setattr(_critic_loss, "ranks", lambda: object())
    monkeypatch.setattr(_critic_loss, "share", lambda *args: 1.0)
    with pytest.raises(NotImplementedError, match="ranks of a distributed run"):
        run.step()


def test_refusals():
    def critic(b):
        return b.package.concat_sites(b.pick(Slope(1.0, 0.0), FlaxSlope(1.0, 0.0)), "x")

    mistakes = {
        "site 'x': noise of adaptive.*AdversarialDivergence": lambda b: b.package.SpreadELBO(
            {"x": adaptive(b)}
        ),
        "site 'x': noise of adaptive": lambda b: b.package.WassersteinCritic(
            critic(b), noise={"x": adaptive(b)}
        ),
        "follows the accuracy": lambda b: b.package.EnergyDistance(noise={"x": adaptive(b)}),
        r"as it is, as in AdversarialDivergence\(critic, noise={'x': adaptive": lambda b: adaptive(
            b
        )(b.np.zeros(3)),
        "accuracy must lie between 0.5": lambda b: adaptive(b, 0.5),
        "speed must be a positive number": lambda b: adaptive(b, speed=0.0),
        "limits must be the least": lambda b: adaptive(b, limits=(2.0, 3.0)),
        "adaptive: expected a noise kernel": lambda b: b.package.adaptive(0.3),
    }
    for match, mistake in mistakes.items():
        assert_refused_alike(mistake, match=match)


# --- parallel lines: one setting for every distance


class Standardised(linen.Module):
    """A critic that sees values in units of what noisy data scatter by."""

    centre: tuple[float, float]

    @linen.compact
    def __call__(self, features):
        y, level = features[..., :2], features[..., 2:]
        hidden = (y - jnp.array(self.centre)) / jnp.sqrt(jnp.array([0.0, 1.0]) + level**2)
        for _ in range(2):
            hidden = jnp.tanh(linen.Dense(64)(hidden))
        return linen.Dense(1)(hidden)


@pytest.mark.slow
@pytest.mark.parametrize("distance", [0.01, 1.0, 100.0])
def test_parallel_lines_at_any_distance_converge_from_one_setting(distance):
    def model(x):
        theta = numpyro.param("theta", 0.0)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            line = jnp.stack([jnp.broadcast_to(theta, z.shape), z], -1)
            numpyro.sample("x", dist.Delta(line, event_dim=1), obs=x)

    def draw(key):
        along = jax.random.normal(key, (256,))
        return jnp.stack([jnp.full(256, distance), along], -1)

    steps, critic_steps = 6000, 2
    noise = numpyro_spread.adaptive(numpyro_spread.GaussianNoise(1.0), speed=0.03)
    critic = numpyro_spread.concat_sites(Standardised((distance, 0.0)), "x", "x_level")
    loss = numpyro_spread.AdversarialDivergence(critic, noise={"x": noise})
    falling = optax.exponential_decay(1.0, steps // critic_steps, 1e-5)
    optim = numpyro_spread.two_player(
        optax.adam(falling, b1=0.5, b2=0.9),
        optax.adam(optax.exponential_decay(5e-3, steps, 0.1)),
        critic_steps,
    )
    svi = numpyro.infer.SVI(model, loss.register(model, no_guide), optim, loss)
    keys = jax.random.split(jax.random.key(0), steps)
    state = svi.init(jax.random.key(1), draw(keys[0]))
    state, _ = jax.lax.scan(lambda state, key: svi.update(state, draw(key)), state, keys)
    # Measured: at most 0.0026 of the distance, over five seeds at 0.01 and two at the others.
    assert float(svi.get_params(state)["theta"]) == pytest.approx(distance, rel=0.02)
