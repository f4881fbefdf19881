# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Two optimisers as one in Pyro: who moves when, by how much, and by whose settings."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from pyro_spread import (
    KL,
    AdversarialDivergence,
    averaged_params,
    concat_sites,
    finite_guard,
    two_player,
)

X = torch.linspace(-1.0, 2.0, 16)


def model(x):
    w = pyro.param("w", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Delta(w * z + w), obs=x)


def guide(x):
    pass


def sgd(rate, clip=None):
    return pyro.optim.SGD({"lr": rate}, clip)


def start(optim, seed=0, **options):
    """SVI on a fresh critic that is always the same, and that critic."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    critic = nn.Linear(1, 1)
    loss = AdversarialDivergence(concat_sites(critic, "x"), **options)
    pyro.set_rng_seed(seed)
    return SVI(model, loss.register(model, guide), optim, loss), critic


def state(critic):
    return pyro.param("w").item(), critic.weight.item(), critic.bias.item()


def path(optim, steps, **options):
    svi, critic = start(optim, **options)
    states = []
    for _ in range(steps):
        svi.step(X)
        states.append(state(critic))
    return states


@pytest.mark.parametrize("update", ["one_pass", "two_pass"])
def test_a_player_that_stands_still_does_not_change_the_other(update):
    both = path(two_player(sgd(0.1), sgd(0.2)), 1, update=update)[0]
    generator = path(two_player(sgd(0.1), sgd(0.0)), 1, update=update)[0]
    critic = path(two_player(sgd(0.0), sgd(0.2)), 1, update=update)[0]
    assert both[0] == generator[0] != 0.5
    assert both[1:] == critic[1:] != generator[1:]
    torch.manual_seed(1)
    untouched = nn.Linear(1, 1)
    assert generator[1:] == (untouched.weight.item(), untouched.bias.item())
    assert critic[0] == 0.5


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_generator_moves_at_every_kth_step(k):
    states = path(two_player(sgd(0.1), sgd(0.2), discriminator_steps=k), 7)
    before = 0.5
    for step, (w, *_) in enumerate(states, start=1):
        assert (w != before) == (step % k == 0), step
        before = w
    assert len({weight for _, weight, _ in states}) == 7


def test_the_generator_follows_the_gradient_of_its_own_step():
    moved = path(two_player(sgd(0.1), sgd(0.2), discriminator_steps=3), 3)
    svi, _ = start(two_player(sgd(0.0), sgd(0.2)))
    for _ in range(2):
        svi.step(X)
    svi.optim = two_player(sgd(0.1), sgd(0.2))
    svi.step(X)
    # The third gradient alone, not the sum of three.
    assert moved[2][0] == pyro.param("w").item() != 0.5


def test_each_player_has_its_own_rate():
    slow = path(two_player(sgd(0.1), sgd(0.1)), 1)[0]
    fast = path(two_player(sgd(0.1), sgd(0.3)), 1)[0]
    torch.manual_seed(1)
    origin = nn.Linear(1, 1).weight.item()
    assert slow[0] == fast[0]
    assert fast[1] - origin == pytest.approx(3 * (slow[1] - origin), rel=1e-5)


def test_each_player_is_clipped_by_its_own_norm():
    torch.manual_seed(1)
    origin = nn.Linear(1, 1).weight.item()
    free = path(two_player(sgd(1.0), sgd(1.0)), 1)[0]
    clipped = path(two_player(sgd(1.0), sgd(1.0, {"clip_norm": 1e-3})), 1)[0]
    assert clipped[0] == free[0]
    assert abs(clipped[1] - origin) == pytest.approx(1e-3, rel=1e-2)
    assert abs(free[1] - origin) > 1e-2


def test_schedules_advance_by_step():
    schedule = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.0}
    )
    optim = two_player(schedule, sgd(0.1))
    svi, critic = start(optim)
    svi.step(X)
    w, weight, _ = state(critic)
    optim.step()  # the rate of the generator is zero from here on
    svi.step(X)
    assert pyro.param("w").item() == w
    assert critic.weight.item() != weight


def test_any_optimiser_serves():
    for make in (
        lambda: pyro.optim.Adam({"lr": 0.1}),
        lambda: pyro.optim.ClippedAdam({"lr": 0.1}),
        lambda: pyro.optim.RMSprop({"lr": 0.1}),
        lambda: pyro.optim.AdamW(lambda name: {"lr": 0.1}),
    ):
        states = path(two_player(make(), make()), 2)
        assert states[0] != states[1]


def test_state_is_saved_and_restored(tmp_path):
    def optim():
        adam = pyro.optim.Adam({"lr": 0.1}), pyro.optim.Adam({"lr": 0.2})
        return two_player(*adam, discriminator_steps=2)

    first = optim()
    svi, critic = start(first)
    for _ in range(3):
        svi.step(X)
    first.save(str(tmp_path / "optim.pt"))
    pyro.get_param_store().save(str(tmp_path / "params.pt"))
    pyro.set_rng_seed(5)
    expected = []
    for _ in range(3):
        svi.step(X)
        expected.append(state(critic))

    second = optim()
    svi, critic = start(second)
    pyro.get_param_store().load(str(tmp_path / "params.pt"))
    second.load(str(tmp_path / "optim.pt"))
    pyro.set_rng_seed(5)
    found = []
    for _ in range(3):
        svi.step(X)
        found.append(state(critic))
    assert found == expected
    assert found[0][0] != found[1][0] or found[1][0] != found[2][0]


def test_another_name_is_split_by_that_name():
    states = path(two_player(sgd(0.0), sgd(0.2), name="judge"), 1, name="judge")
    assert states[0][0] == 0.5
    with pytest.raises(ValueError, match=r"no param belongs to the discriminator 'judge'.*'w'"):
        path(two_player(sgd(0.1), sgd(0.2), name="judge"), 1)


def test_params_of_the_generator_whose_name_begins_alike_are_its_own():
    def longer(x):
        shift = pyro.param("discriminator_shift", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

    loss = AdversarialDivergence(concat_sites(nn.Linear(1, 1), "x"), KL())
    svi = SVI(longer, guide, two_player(sgd(0.0), sgd(0.2)), loss)
    svi.step(X)
    assert pyro.param("discriminator_shift").item() == 0.5


def test_refusals():
    with pytest.raises(TypeError, match=r"generator must be a Pyro optimiser, got 0\.1"):
        two_player(0.1, sgd(0.1))
    with pytest.raises(TypeError, match="two_player: discriminator must be a Pyro optimiser"):
        two_player(sgd(0.1), torch.optim.SGD)
    with pytest.raises(TypeError, match="two_player: discriminator must be a Pyro optimiser"):
        two_player(sgd(0.1), two_player(sgd(0.1), sgd(0.1)))
    one = sgd(0.1)
    with pytest.raises(ValueError, match="two_player: discriminator must be another object"):
        two_player(one, one)
    for steps in (0, -1, 1.5):
        with pytest.raises(ValueError, match="two_player: discriminator_steps must be a positive"):
            two_player(sgd(0.1), sgd(0.1), discriminator_steps=steps)


def averaged_by_hand(values, decay):
    """The exponential moving average that follows closely until it is long enough."""
    average = values[0]
    for count, value in enumerate(values[1:], start=2):
        kept = min(decay, (1 + count) / (10 + count))
        average = kept * average + (1 - kept) * value
    return average


@pytest.mark.parametrize("k", [1, 2])
def test_average_of_the_generator(k):
    optim = two_player(sgd(0.1), sgd(0.2), k, ema=0.4)
    svi, critic = start(optim)
    values = []
    for _ in range(12):
        svi.step(X)
        values.append(pyro.param("w").item())
    last = state(critic)
    with averaged_params(svi):
        inside = state(critic)
        assert inside[0] == pytest.approx(averaged_by_hand(values[k - 1 :: k], 0.4), rel=1e-6)
        assert inside[0] != last[0]
        assert inside[1:] == last[1:]  # the critic is not averaged
    assert state(critic) == last


def test_average_is_put_back_after_an_error():
    svi, critic = start(two_player(sgd(0.1), sgd(0.2), ema=0.9))
    for _ in range(3):
        svi.step(X)
    last = state(critic)
    with pytest.raises(KeyError), averaged_params(svi):
        raise KeyError
    assert state(critic) == last


def test_average_is_part_of_the_state():
    optim = two_player(sgd(0.1), sgd(0.2), ema=0.9)
    svi, _ = start(optim)
    for _ in range(3):
        svi.step(X)
    saved = optim.get_state()
    with averaged_params(svi):
        expected = pyro.param("w").item()
    svi.step(X)
    optim.set_state(saved)
    with averaged_params(svi):
        assert pyro.param("w").item() == expected


@pytest.mark.parametrize("guarded", [False, True])
def test_state_of_another_optimiser_is_refused(guarded):
    svi, critic = start(two_player(sgd(0.1), sgd(0.2)))
    if guarded:
        svi = finite_guard(svi)
    svi.step(X)
    saved, last = sgd(0.1).get_state(), state(critic)
    message = r"set_state: the state has no \['(guarded|generator)', .*is that of another optimiser"
    with pytest.raises(ValueError, match=message):
        svi.optim.set_state(saved)
    partial = {"generator": {}, "guarded": {"generator": {}}, "finite_guard": {}}
    with pytest.raises(ValueError, match=r"TwoPlayer.set_state: .*'discriminator'"):
        svi.optim.set_state(partial)
    assert state(critic) == last
    svi.step(X)


def test_no_average_is_an_error():
    svi, _ = start(two_player(sgd(0.1), sgd(0.2)))
    svi.step(X)
    for bad in (svi, SVI(model, guide, sgd(0.1), AdversarialDivergence(nn.Linear(1, 1)))):
        with (
            pytest.raises(ValueError, match=r"must be two_player\(\.\.\., ema=0\.999\)"),
            averaged_params(bad),
        ):
            pass
    with pytest.raises(ValueError, match=r"ema must be in \(0, 1\), or None, got 1.5"):
        two_player(sgd(0.1), sgd(0.2), ema=1.5)
