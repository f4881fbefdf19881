# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One rule for what stands where arrays belong, in every loss and evaluation."""

import every
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro_every import AS_IT_IS, eager_and_compiled

import pyro_spread as ps
from pyro_spread._inputs import as_tensor
from pyro_spread.ratio import MLPCritic
from spread_core.messages.general import shortened, shown

pd = pytest.importorskip("pandas")
jnp = pytest.importorskip("jax.numpy")

X = np.linspace(-1.0, 1.0, 10).reshape(5, 2)


def generator(x):
    w = pyro.param("w", torch.ones(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Delta(z * w, event_dim=1), obs=x)


def scored(x):
    w = pyro.param("w", torch.ones(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z * w, 1.0).to_event(1), obs=x)


def no_guide(x):
    pass


def amortised(x):
    v = pyro.param("v", torch.ones(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(v * x, 1.0).to_event(1))


def implicit(x):
    v = pyro.param("v", torch.ones(2))
    eps = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", ps.ImplicitDistribution(lambda e: v * e + x, eps, (2,)))


def critic(*names):
    return ps.concat_sites(MLPCritic(hidden=[4]), *names)


LOSSES = every.LOSSES | every.WITHOUT_NOISE
GUIDES = {"empty": no_guide, "normal": amortised, "implicit": implicit}


def program(name):
    """A loss of the list, with a model and a guide that it can take."""
    loss = LOSSES[name]
    return loss.make(ps, critic), scored if loss.likely else generator, GUIDES[loss.guide]


CALLS = {
    "bound": lambda x: ps.importance_weighted_bound(scored, amortised, x, num_samples=2),
    "annealing": lambda x: ps.ais_log_likelihood(scored, x, num_temperatures=2, num_chains=2),
    "calibration": lambda x: (
        ps.simulation_based_calibration(scored, amortised, x, num_simulations=1, num_draws=2).ranks
    ),
}


def step(name, x, how):
    if name in CALLS:
        return str(CALLS[name](x))
    loss, model, guide = program(name)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), how.made(loss))
    return [svi.step(x) for _ in range(1 + how.before)]


def run(name, x, how=AS_IT_IS):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return step(name, x, how)


def read_only():
    array = X.copy()
    array.flags.writeable = False
    return array


CONVERTED = {
    "float64": lambda: X,
    "float32": lambda: X.astype(np.float32),
    "other byte order": lambda: X.astype(">f8"),
    "backwards": lambda: X[::-1][::-1],
    "read only": read_only,
    "jax": lambda: jnp.asarray(X),
}


@eager_and_compiled([*LOSSES, *CALLS], kind=CONVERTED)
def test_arrays_are_tensors_to_model_and_guide(name, how, kind):
    wanted = run(name, torch.tensor(X, dtype=torch.float32))
    given = CONVERTED[kind]()
    kept = np.array(given)
    assert run(name, given, how)[: len(wanted)] == wanted
    np.testing.assert_array_equal(np.asarray(given), kept)


REFUSED = {
    "list": (X.tolist(), "list", "one array"),
    "list of tensors": ([torch.zeros(2)] * 5, "list", "one array"),
    "ragged": ([[1.0], [1.0, 2.0]], "list", "one array"),
    "frame": (pd.DataFrame(X), "DataFrame", ".to_numpy()"),
    "series": (pd.Series(X[0]), "Series", ".to_numpy()"),
    "masked": (np.ma.masked_array(X, X > 0), "MaskedArray", ".filled(0)"),
    "objects": (X.astype(object), "dtype object", "numbers"),
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
    for part in ("'x'", what, "not a torch.Tensor", way_out):
        assert part in text


@pytest.mark.parametrize("name", ["MMD", "spread", "joint KL", "joint"])
def test_long_data_are_not_in_the_message(name):
    with pytest.raises((TypeError, ValueError)) as caught:
        run(name, np.zeros((2000, 2)).tolist())
    assert len(str(caught.value)) < 400


def test_containers_stay_what_they_are():
    seen = {}

    def model(batch, steps, name, nothing=None):
        seen.update(batch=batch, steps=steps, name=name, nothing=nothing)
        with pyro.plate("data", len(batch["x"])):
            w = pyro.param("w", torch.ones(2))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(z * w, event_dim=1), obs=batch["x"])

    tensors = [torch.zeros(3), torch.ones(2)]
    batch = {"x": X, "parts": tensors, "names": ["a", "b"], "shape": (5, 2)}
    SVI(model, lambda *args: None, pyro.optim.Adam({"lr": 0.1}), ps.EnergyDistance()).step(
        batch, [1, 2], "mode"
    )
    assert isinstance(batch["x"], np.ndarray)  # the caller's
    assert isinstance(seen["batch"]["x"], torch.Tensor)
    assert seen["batch"]["parts"] is tensors
    assert seen["batch"]["names"] is batch["names"]
    assert (seen["steps"], seen["name"], seen["nothing"]) == ([1, 2], "mode", None)


def test_types_that_torch_lacks():
    assert as_tensor(np.array([1, 2**31], np.uint32)).tolist() == [1, 2**31]
    assert as_tensor(np.array([0.5], np.longdouble)).dtype == torch.float32
    assert as_tensor(np.array([1, 2], np.int32)).dtype == torch.int32
    assert as_tensor(np.array([0.5], np.float16)).dtype == torch.float16
    assert as_tensor(jnp.ones(2, jnp.bfloat16)).dtype == torch.bfloat16
    scalar = np.float64(2.0)
    assert as_tensor(scalar) is scalar
    assert as_tensor(None) is None


def test_numpy_becomes_the_default_type():
    torch.set_default_dtype(torch.float64)
    try:
        assert as_tensor(X).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_errors_of_a_model_with_a_container_stay_their_own():
    class OwnError(ValueError):
        pass

    def model(parts):
        raise OwnError("mine")

    svi = SVI(model, no_guide, pyro.optim.Adam({"lr": 0.1}), ps.EnergyDistance())
    with pytest.raises(OwnError, match="mine"):
        svi.step([torch.zeros(2)])


def test_foreign_texts_are_shortened():
    text = shortened(f"cannot use {[[0.1, 0.2]] * 5000}\nat all\n Trace Shapes:\n x 3")
    assert text == "cannot use [...] at all"
    assert "nan" in shortened(f"found {torch.full((50,), torch.nan)}")
    assert len(shortened("word " * 1000)) == 300
    assert shown(torch.zeros(9, 9)) == "an array (Tensor) of shape (9, 9)"
    assert (shown([1] * 1000), shown(0.3)) == ("a list of 1000", "0.3")
    with pytest.raises(TypeError) as caught:
        ps.SpreadELBO(torch.zeros(500))
    assert len(str(caught.value)) < 250
