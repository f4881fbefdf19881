# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Steps that would end in NaN or inf in NumPyro: who is named, what is left, what a guard does."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO

from numpyro_spread import (
    MMD,
    AdversarialDivergence,
    GaussianKernel,
    GaussianNoise,
    ImplicitDistribution,
    JointContrastELBO,
    NonFiniteError,
    PriorContrastELBO,
    SpreadELBO,
    WassersteinCritic,
    averaged_params,
    concat_sites,
    finite_guard,
    guard_status,
    two_player,
)

NOISE = {"x": GaussianNoise(0.5)}
X = jnp.broadcast_to(jnp.linspace(-1.0, 2.0, 12)[:, None], (12, 2))
BAD = X.at[3, 1].set(jnp.nan)
KEY = jax.random.key(0)


class Critic(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(4)(x)))


def model(x):
    decoder = flax_module("decoder", nn.Dense(2), input_shape=(1, 2))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Delta(decoder(z), event_dim=1), obs=x)


def normal(x):
    encoder = flax_module("encoder", nn.Dense(2), input_shape=(1, 2))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))


def draw(encoder, x, eps):
    return encoder(jnp.concatenate([jnp.broadcast_to(x, eps.shape), eps], -1))


def implicit(x):
    encoder = flax_module("encoder", nn.Dense(2), input_shape=(1, 4))
    fn = jax.tree_util.Partial(draw, encoder, x)
    base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", ImplicitDistribution(fn, base, (2,)))


def empty(x):
    pass


LOSSES = {
    "spread": lambda: (normal, SpreadELBO(NOISE)),
    "adversarial": lambda: (empty, AdversarialDivergence(concat_sites(Critic(), "x"))),
    "wasserstein": lambda: (empty, WassersteinCritic(concat_sites(Critic(), "x"))),
    "mmd": lambda: (empty, MMD(GaussianKernel(1.0))),
    "prior": lambda: (
        implicit,
        PriorContrastELBO(concat_sites(Critic(), "z", "x"), NOISE, annealing=20),
    ),
    "joint": lambda: (implicit, JointContrastELBO(concat_sites(Critic(), "z", "x"), noise=NOISE)),
}
CRITICS = ("adversarial", "wasserstein", "prior", "joint")


def start(name, on_nonfinite=None, optim=None, **options):
    guide, loss = LOSSES[name]()
    if optim is None:
        adam = functools.partial(optax.adam, 1e-2)
        optim = two_player(adam(), adam()) if name in CRITICS else adam()
    svi = SVI(model, loss.register(model, guide), optim, loss)
    if on_nonfinite:
        svi = finite_guard(svi, on_nonfinite, **options)
    return svi, svi.init(KEY, X)


def moving(svi, state):
    """All that a step may change, the random key and the guard's own counts apart."""
    return getattr(state.optim_state, "guarded", state.optim_state), state.mutable_state


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def poisoned(svi, state, name, value=jnp.nan):
    """The state with NaN in one param."""
    count, (params, rest) = state.optim_state.guarded
    params = {**params, name: jax.tree.map(lambda leaf: leaf.at[..., 0].set(value), params[name])}
    return state._replace(optim_state=state.optim_state._replace(guarded=(count, (params, rest))))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_skip_moves_nobody_and_goes_on(self, name):
        svi, state = start(name, "skip")
        update = jax.jit(svi.update)
        state, _ = update(state, X)
        bad, loss = update(state, BAD)
        assert not np.isfinite(loss) or name == "spread"
        assert_same(moving(svi, bad), moving(svi, state))
        status = guard_status(svi, bad)
        assert status[:3] == (1, 1, 1.0)
        assert re.search("NaN", status.last)
        good, loss = update(bad, X)
        assert np.isfinite(loss)
        assert guard_status(svi, good)[:2] == (1, 0)

    def test_stock_stable_update_skips_both_players(self, name):
        svi, state = start(name)
        update = jax.jit(svi.stable_update)
        state, _ = update(state, X)
        bad, loss = update(state, BAD)
        assert np.isnan(loss)
        assert_same(bad.optim_state, state.optim_state)


class TestRaise:
    def test_eager_data_are_named_by_the_loss(self):
        svi, state = start("adversarial")
        with pytest.raises(NonFiniteError, match="site 'x': the observed data contain NaN or inf"):
            svi.update(state, BAD)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["adversarial", "prior"])
    def test_compiled_data_are_named_by_the_guard(self, name):
        svi, state = start(name, "raise")
        update = jax.jit(svi.update)
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"argument\(s\) \['x'\] contain NaN"):
            jax.block_until_ready(update(state, BAD))
        _, loss = update(state, X)
        assert np.isfinite(loss)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("param", "player"),
        [("discriminator$params", "discriminator"), ("decoder$params", "generator")],
    )
    @pytest.mark.parametrize("compiled", [True, False])
    def test_param_and_player_are_named(self, param, player, compiled):
        svi, state = start("adversarial", "raise")
        state = poisoned(svi, state, param)
        error = jax.errors.JaxRuntimeError if compiled else NonFiniteError
        update = jax.jit(svi.update) if compiled else svi.update
        message = rf"param '{re.escape(param)}\['.*'\]' of the {player} contains"
        with pytest.raises(error, match=message):
            jax.block_until_ready(update(state, X))

    def test_an_error_of_the_user_is_not_blamed_on_params(self):
        def fails(x):
            raise KeyError("the user's own mistake")

        svi, state = start("adversarial", "raise")
        state = poisoned(svi, state, "decoder$params")
        svi.model = fails
        with pytest.raises(KeyError, match="own mistake"):
            svi.update(state, X)

    def test_gradients_are_named(self):
        def rooted(x):
            w = numpyro.param("w", 0.0)
            with numpyro.plate("data", len(x)):
                numpyro.sample("x", dist.Normal(jnp.sqrt(w * w), 1.0).to_event(0), obs=x)

        svi = finite_guard(SVI(rooted, empty, optax.adam(0.1), Trace_ELBO()))
        state = svi.init(KEY, X[:, 0])
        with pytest.raises(NonFiniteError, match="param 'w' of the generator: its gradient"):
            svi.update(state, X[:, 0])

    @pytest.mark.slow
    def test_run_under_scan_and_with_progress_bar(self):
        for progress_bar in (False, True):
            svi, state = start("adversarial", "raise")
            state = poisoned(svi, state, "decoder$params")
            with pytest.raises(jax.errors.JaxRuntimeError, match=r"decoder.*of the generator"):
                jax.block_until_ready(
                    svi.run(KEY, 5, X, progress_bar=progress_bar, init_state=state)
                )

    @pytest.mark.slow
    def test_stock_loss_without_likelihood(self):
        svi = finite_guard(SVI(model, normal, optax.adam(0.1), Trace_ELBO()))
        with pytest.raises(NonFiniteError, match=r"the loss is inf.*Delta without noise"):
            svi.update(svi.init(KEY, X), X)


class TestActions:
    @pytest.mark.slow
    def test_good_steps_are_those_without_a_guard(self):
        results = []
        for action in (None, "raise", "skip", "reduce"):
            svi, state = start("prior", action)
            result = svi.run(KEY, 5, X, progress_bar=False, init_state=state)
            results.append((moving(svi, result.state), result.losses))
        # Programs of their own for the compiler, which rounds them in its own ways.
        for other in results[1:]:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
                results[0],
                other,
            )

    def test_run_skips_a_run_of_bad_steps(self):
        def sometimes(x):
            w = numpyro.param("w", 1.0)
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                bad = jnp.where(z[0] > 0, jnp.nan, 1.0)
                numpyro.sample("x", dist.Delta(w * z * bad), obs=x)

        loss = MMD(GaussianKernel(1.0))
        for stable in (False, True):
            svi = SVI(sometimes, loss.register(sometimes, empty), optax.adam(0.01), loss)
            svi = finite_guard(svi, "skip")
            result = svi.run(KEY, 40, X[:, 0], progress_bar=False, stable_update=stable)
            skipped = guard_status(svi, result.state).skipped
            assert skipped == np.isnan(result.losses).sum()
            assert 5 < skipped < 35
            assert np.isfinite(result.params["w"])

    @pytest.mark.slow
    def test_mutable_state_of_the_model_is_kept(self):
        def normalised(x):
            net = flax_module(
                "net",
                nn.BatchNorm(use_running_average=False),
                input_shape=(3, 2),
                mutable=["batch_stats"],
            )
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                numpyro.sample("x", dist.Delta(net(z + x), event_dim=1), obs=x)

        loss = MMD(GaussianKernel(1.0))
        svi = SVI(normalised, loss.register(normalised, empty), optax.adam(0.01), loss)
        svi = finite_guard(svi, "skip")
        state, _ = jax.jit(svi.update)(svi.init(KEY, X), X)
        assert np.any(state.mutable_state["net$state"]["batch_stats"]["mean"])
        for update in (jax.jit(svi.update), jax.jit(svi.stable_update)):
            bad, _ = update(state, BAD)
            assert_same(moving(svi, bad), moving(svi, state))

    @pytest.mark.slow
    def test_reduce_shrinks_the_updates_of_both_players_and_recovers(self):
        svi, state = start("adversarial", "reduce", factor=0.25, recover_after=2)
        update = jax.jit(svi.update)
        bad, _ = update(state, BAD)
        assert guard_status(svi, bad).step_scale == 0.25
        params = svi.get_params(state)
        # The same key, so that the draws are the same.
        full = svi.get_params(update(state, X)[0])
        less, _ = update(bad._replace(rng_key=state.rng_key), X)
        jax.tree.map(
            lambda a, b, c: np.testing.assert_allclose(b - a, 0.25 * (c - a), rtol=1e-3, atol=1e-7),
            params,
            svi.get_params(less),
            full,
        )
        good, _ = update(less, X)
        assert guard_status(svi, good).step_scale == 1.0

    @pytest.mark.slow
    def test_an_update_that_overflows_is_not_taken(self):
        optim = two_player(optax.adam(1e-2), optax.sgd(jnp.inf), ema=0.9)
        svi, state = start("adversarial", "skip", optim=optim)
        bad, loss = jax.jit(svi.update)(state, X)
        assert np.isfinite(loss)
        assert_same(moving(svi, bad), moving(svi, state))
        assert re.search(r"of the discriminator: the optimiser's step", guard_status(svi, bad).last)
        assert averaged_params(svi, bad).keys() == svi.get_params(bad).keys()

    @pytest.mark.slow
    def test_optimisers_of_numpyro(self):
        svi, state = start("mmd", "skip", optim=numpyro.optim.Adam(1e-2))
        bad, _ = jax.jit(svi.update)(state, BAD)
        assert_same(moving(svi, bad), moving(svi, state))
        good, _ = svi.update(bad, X, forward_mode_differentiation=True)
        assert guard_status(svi, good)[:2] == (1, 0)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda s: finite_guard(s.optim), TypeError, "Guard the SVI, not its optimiser"),
            (lambda s: finite_guard(s, "ignore"), ValueError, "on_nonfinite must be one of"),
            (lambda s: finite_guard(s, factor=1.0), ValueError, "factor must be in (0, 1)"),
            (lambda s: finite_guard(s, recover_after=0), ValueError, "recover_after"),
            (lambda s: finite_guard(finite_guard(s)), ValueError, "has a guard already"),
            (lambda s: guard_status(s, None), ValueError, "has no guard: use svi = finite_guard("),
        ],
    )
    def test_refusals(self, change, error, message):
        svi, _ = start("mmd")
        with pytest.raises(error, match=re.escape(message)):
            change(svi)

    @pytest.mark.parametrize(
        ("optim", "message"),
        [
            (numpyro.optim.Adam(0.1), "Use an optax optimiser, such as optax.adam, or 'skip'"),
            (numpyro.optim.Minimize(), "there is no step to skip"),
        ],
    )
    def test_optimisers_that_cannot_be_reduced(self, optim, message):
        svi, _ = start("mmd", optim=optim)
        with pytest.raises(NotImplementedError, match=re.escape(message)):
            finite_guard(svi, "reduce")

    def test_state_of_an_svi_without_guard(self):
        svi, state = start("mmd")
        svi = finite_guard(svi)
        with pytest.raises(ValueError, match="Call init on the guarded SVI"):
            svi.update(state, X)
