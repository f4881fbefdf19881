# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One rule for what stands where arrays belong, in every loss and evaluation."""

import every
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from jax.tree_util import Partial
from numpyro.infer import SVI

import numpyro_spread as ps
from numpyro_spread.ratio import MLPCritic

pd = pytest.importorskip("pandas")
torch = pytest.importorskip("torch")

X = np.linspace(-1.0, 1.0, 10, dtype=np.float32).reshape(5, 2)
PARAMS = {"w": jnp.ones(2), "v": jnp.ones(2)}


def generator(x):
    w = numpyro.param("w", jnp.ones(2))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Delta(z * w, event_dim=1), obs=x)


def scored(x):
    w = numpyro.param("w", jnp.ones(2))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z * w, 1.0).to_event(1), obs=x)


def no_guide(x):
    pass


def amortised(x):
    v = numpyro.param("v", jnp.ones(2))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(v * x, 1.0).to_event(1))


def implicit(x):
    v = numpyro.param("v", jnp.ones(2))
    fn = Partial(lambda v, x, eps: v * eps + x, v, x)
    eps = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", ps.ImplicitDistribution(fn, eps, (2,)))


def critic(*names):
    return ps.concat_sites(MLPCritic([4]), *names)


LOSSES = every.LOSSES | every.WITHOUT_NOISE
GUIDES = {"empty": no_guide, "normal": amortised, "implicit": implicit}


def program(name):
    """A loss of the list, with a model and a guide that it can take."""
    loss = LOSSES[name]
    return loss.make(ps, critic), scored if loss.likely else generator, GUIDES[loss.guide]


KEY = random.key(0)
CALLS = {
    "bound": lambda x: ps.importance_weighted_bound(
        KEY, PARAMS, scored, amortised, x, num_samples=2
    ),
    "annealing": lambda x: ps.ais_log_likelihood(
        KEY, PARAMS, scored, x, num_temperatures=2, num_chains=2
    ),
    "calibration": lambda x: (
        ps.simulation_based_calibration(
            KEY, PARAMS, scored, amortised, x, num_simulations=1, num_draws=2
        ).ranks
    ),
}


def run(name, x, how="update"):
    if name in CALLS:
        return str(CALLS[name](x))
    loss, model, guide = program(name)
    svi = SVI(model, loss.register(model, guide), optax.adam(0.1), loss)
    if how == "run":
        return float(svi.run(random.key(0), 1, x, progress_bar=False).losses[0])
    state = svi.init(random.key(0), x)
    return float(svi.update(state, x)[1])


@pytest.mark.parametrize("name", [*LOSSES, *CALLS])
def test_tensors_are_arrays_to_guide_and_loss(name):
    tensor = torch.tensor(X)
    assert run(name, tensor) == run(name, X)
    assert tensor.numpy().tolist() == X.tolist()


@pytest.mark.parametrize("name", ["MMD", "spread", "joint KL", "prior without noise"])
@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(5, 2, requires_grad=True), torch.zeros(5, 2, dtype=torch.bfloat16)],
    ids=["grad", "bfloat16"],
)
def test_other_tensors(name, tensor):
    assert np.isfinite(run(name, tensor, "run"))


REFUSED = {
    "list": (X.tolist(), "list", "one array"),
    "frame": (pd.DataFrame(X), "DataFrame", ".to_numpy()"),
    "masked": (np.ma.masked_array(X, X > 0), "MaskedArray", ".filled(0)"),
    "words": (X.astype(str), "dtype <U", "numbers"),
}


@pytest.mark.parametrize("name", [*LOSSES, *CALLS])
@pytest.mark.parametrize("kind", REFUSED)
def test_all_else_is_refused_in_one_short_line(name, kind):
    value, what, way_out = REFUSED[kind]
    with pytest.raises((TypeError, ValueError)) as caught:
        run(name, value)
    text = str(caught.value)
    assert len(text) < 500
    assert "\n" not in text
    for part in ("'x'", what, "not an array", way_out):
        assert part in text


@pytest.mark.parametrize("name", ["MMD", "spread", "joint KL", "joint"])
@pytest.mark.parametrize("jit", [False, True])
def test_long_data_are_not_in_the_message(name, jit):
    loss, model, guide = program(name)
    svi = SVI(model, loss.register(model, guide), optax.adam(0.1), loss)
    state = svi.init(random.key(0), X)
    update = jax.jit(svi.update) if jit else svi.update
    with pytest.raises((TypeError, ValueError)) as caught:
        update(state, np.zeros((200, 2)).tolist())
    assert len(str(caught.value)) < 400


def test_containers_and_numpy_stay_what_they_are():
    seen = {}

    def model(batch, steps, name, nothing=None):
        seen.update(batch=batch, steps=steps, name=name, nothing=nothing)
        w = numpyro.param("w", jnp.ones(2))
        with numpyro.plate("data", len(batch["x"])):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Delta(z * w, event_dim=1), obs=batch["x"])

    arrays = [jnp.zeros(3), jnp.ones(2)]
    batch = {"x": torch.tensor(X), "y": X, "parts": arrays, "names": ["a", "b"]}
    loss = ps.EnergyDistance()
    svi = SVI(model, loss.register(model, lambda *args: None), optax.adam(0.1), loss)
    svi.update(svi.init(random.key(0), batch, [1, 2], "mode"), batch, [1, 2], "mode")
    assert isinstance(batch["x"], torch.Tensor)  # the caller's
    assert isinstance(seen["batch"]["x"], np.ndarray)
    assert seen["batch"]["y"] is X
    assert seen["batch"]["parts"] is arrays
    assert (seen["steps"], seen["name"], seen["nothing"]) == ([1, 2], "mode", None)
