# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulators round black boxes: what they get, what they may return, what is refused."""

import functools
import re

import jax
import numpy as np
import pytest
from twins import NumPyro, Pyro, assert_refused_alike, compare, in_both, numbers

BATCH, OWN = (4,), (3,)


def draw(b, fn, *args, sample_shape=(), seed=0, **options):
    """Draws of a simulator, as an array of NumPy."""
    made = fn if not callable(fn) or not options else simulator(b, fn, *args, **options)
    return np.asarray(sample(b, made, sample_shape, seed))


def simulator(b, fn, *args, **options):
    return b.package.Simulator(fn, *args, **options)


def sample(b, distribution, sample_shape=(), seed=0):
    if b is Pyro:
        b.np.manual_seed(seed)
        return distribution.sample(sample_shape)
    return distribution.sample(jax.random.key(seed), sample_shape)


def settled(rng, a, theta):
    """Without noise: of shape (n, 2)."""
    return np.stack([a + theta.sum(-1), a * theta[..., 0]], -1)


def noisy(rng, a):
    return a + rng.normal(size=np.shape(a))


def recorded(seen, rng, *arrays):
    seen.append([array.shape for array in arrays])
    return np.zeros((len(arrays[0]), 2))


TWO = {"event_shape": (2,), "arg_event_dims": (0, 1)}


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("sample_shape", [(), (5,), (2, 3)])
@in_both
def test_shapes(b, sample_shape, vectorized):
    a, theta = b.array(numbers("a", 4)), b.array(numbers("theta", 3))
    fn = simulator(b, settled, a, theta, vectorized=vectorized, **TWO)
    assert tuple(fn.batch_shape) == BATCH
    assert tuple(fn.event_shape) == (2,)
    assert not fn.has_rsample
    assert draw(b, fn, sample_shape=sample_shape).shape == (*sample_shape, 4, 2)
    wide = fn.expand((6, 4))
    assert tuple(wide.batch_shape) == (6, 4)
    assert draw(b, wide, sample_shape=sample_shape).shape == (*sample_shape, 6, 4, 2)
    assert draw(b, fn.to_event(1), sample_shape=sample_shape).shape == (*sample_shape, 4, 2)


@in_both
def test_what_fn_gets_is_flattened(b):
    seen = []
    fn = simulator(
        b, functools.partial(recorded, seen), b.np.zeros(4), b.np.zeros((6, 1, 3)), 0.5,
        event_shape=(2,), arg_event_dims=(0, 1, 0),
    )  # fmt: skip
    assert tuple(fn.batch_shape) == (6, 4)
    assert seen == []  # nothing is tried when it is made
    draw(b, fn, sample_shape=(5,))
    assert seen == [[(120,), (120, 3), (120,)]]


@in_both
def test_row_by_row_fn_gets_one_run(b):
    seen = []

    def fn(rng, a, theta):
        seen.append((np.shape(a), theta.shape))
        return 0.0

    args = b.np.zeros(4), b.np.zeros((4, 3))
    options = {"arg_event_dims": (0, 1), "vectorized": False}
    draw(b, simulator(b, fn, *args, event_shape=(), **options))
    assert seen == [((), (3,))] * 4


@pytest.mark.parametrize("vectorized", [True, False])
def test_both_backends_call_it_alike(vectorized):
    def program(b):
        a, theta = b.array(numbers("a", 5, 4)), b.array(numbers("theta", 4, 3))
        return sample(b, simulator(b, settled, a, theta, vectorized=vectorized, **TWO), (2,))

    a, theta = numbers("a", 5, 4), numbers("theta", 4, 3)
    expected = np.broadcast_to(settled(None, a, theta), (2, 5, 4, 2))
    np.testing.assert_allclose(compare(program), expected)


@pytest.mark.parametrize("vectorized", [True, False])
@in_both
def test_noise_is_fresh_for_every_element(b, vectorized):
    fn = simulator(b, noisy, b.np.zeros(4), event_shape=(), vectorized=vectorized)
    values = draw(b, fn.expand((3, 4)), sample_shape=(5,))
    assert len(set(values.ravel())) == 60
    assert np.array_equal(values, draw(b, fn.expand((3, 4)), sample_shape=(5,)))
    assert not np.isin(draw(b, fn.expand((3, 4)), sample_shape=(5,), seed=1), values).any()
    assert abs(draw(b, fn, sample_shape=(500,)).std() - 1) < 0.1


@in_both
def test_row_by_row_a_run_does_not_depend_on_those_beside_it(b):
    def spends(rng, a):
        rng.normal(size=int(a))
        return rng.normal()

    def of(*args):
        array = b.array(np.array(args))
        return draw(b, simulator(b, spends, array, event_shape=(), vectorized=False))

    assert np.array_equal(of(3, 1, 7)[[0, 2]], of(3, 5, 7)[[0, 2]])
    assert of(3, 1, 7)[1] != of(3, 5, 7)[1]


@in_both
def test_results_of_any_real_type_become_floating(b):
    for result in (3, True, np.int8(2), np.float16(0.5), [1, 2]):
        shape = np.shape(result)
        fn = simulator(
            b, lambda rng, a, r=result: r, b.np.zeros(2), event_shape=shape, vectorized=False
        )
        values = draw(b, fn)
        assert values.dtype == np.float64
        assert np.array_equal(values, np.broadcast_to(np.asarray(result, float), (2, *shape)))


@in_both
def test_the_type_is_that_of_floating_arguments(b):
    types = []

    def fn(rng, *arrays):
        types.append([array.dtype for array in arrays])
        return arrays[0] + 0.5

    narrow, wide = (b.array(np.zeros(2, kind)) for kind in (np.float32, np.float64))
    whole = b.array(np.arange(2, dtype=np.int32))
    half = narrow.half() if b is Pyro else narrow.astype("bfloat16")
    for args, dtype in (
        ((narrow,), np.float32),
        ((whole, narrow), np.float32),
        ((narrow, wide), np.float64),
        ((whole,), np.float64),
        ((half,), np.float32),
        ((1,), np.float64),
        ((narrow, 0.5, np.ones(2)), np.float32),
    ):
        assert sample(b, simulator(b, fn, *args, event_shape=())).dtype == getattr(
            b.np, dtype.__name__
        )
    assert types[1] == [np.int32, np.float32]
    assert types[4] == [np.float32]


@in_both
def test_fn_may_write_to_what_it_gets_and_reuse_what_it_returns(b):
    buffer = np.zeros((2, 1))

    def fn(rng, a):
        a *= 2
        buffer[:, 0] = a
        return buffer

    given = b.array(np.array([1.0, 3.0]))
    distribution = simulator(b, fn, given, event_shape=(1,))
    first = sample(b, distribution)
    buffer[:] = 7.0
    assert np.asarray(first).ravel().tolist() == [2.0, 6.0]
    assert np.asarray(given).tolist() == [1.0, 3.0]
    assert np.array_equal(draw(b, distribution), np.asarray(first))


@in_both
def test_no_runs_need_no_call(b):
    def fn(rng, a):
        raise AssertionError

    assert draw(b, simulator(b, fn, b.np.zeros((0,)), event_shape=(2,))).shape == (0, 2)


@in_both
def test_nan_passes(b):
    values = draw(b, simulator(b, lambda rng, a: np.sqrt(a - 1) * np.nan, 2.0, event_shape=()))
    assert np.isnan(values)


@in_both
def test_errors_of_fn_keep_type_and_message(b):
    class SolverError(Exception):
        pass

    def fn(rng, a):
        raise SolverError("step size below 1e-12")

    with pytest.raises(SolverError, match="step size below 1e-12"):
        draw(b, simulator(b, fn, b.np.zeros(2), event_shape=()))


def make(*args, **options):
    return lambda b: simulator(b, *args, **{"event_shape": (2,)} | options)


def zeros(*shape):
    return lambda b: b.np.zeros(shape)


@pytest.mark.parametrize(
    ("mistake", "error", "parts"),
    [
        (make(3, 0.0), TypeError, ["fn must be callable", "got 3"]),
        (make(noisy), TypeError, ["needs at least one array", "lambda rng, zero"]),
        (make(noisy, "steps"), TypeError, ["argument 1 after fn", "got 'steps'", "partial"]),
        (make(noisy, 0.0, None), TypeError, ["argument 2 after fn", "got None"]),
        (make(noisy, 0.0, [1.0, "a"]), TypeError, ["argument 2 after fn must be an array"]),
        (make(noisy, 0.0, event_shape=2), TypeError, ["Simulator: event_shape", "(2,) for a"]),
        (make(noisy, 0.0, vectorized=1), TypeError, ["vectorized must be True or False, got 1"]),
        (make(noisy, 0.0, arg_event_dims=-1), TypeError, ["arg_event_dims must be", "got -1"]),
        (make(noisy, 0.0, arg_event_dims=(0, 1)), TypeError, ["each of the 1 argument(s)"]),
        (make(noisy, 0.0, arg_event_dims=1), ValueError, ["argument 1", "shape ()", "=1"]),
        (
            make(noisy, np.zeros(4), np.zeros((5, 3))),
            ValueError,
            ["shapes (4,), (5, 3)", "arg_event_dims=(0, 0)", "For a vector per run"],
        ),
    ],
)
def test_wrong_arguments(mistake, error, parts):
    assert_refused_alike(mistake, error=error, match=".*".join(map(re.escape, parts)))


def drawn(fn, *shape, **options):
    """Draw from a simulator of one array of zeros."""

    def mistake(b):
        draw(b, simulator(b, fn, b.np.zeros(shape), **{"event_shape": (2,)} | options))

    return mistake


@pytest.mark.parametrize(
    ("mistake", "error", "parts"),
    [
        (
            drawn(lambda rng, a: np.zeros((4, 3)), 4),
            ValueError,
            ["returned shape (4, 3), expected (4, 2)", "arguments of shape (4,)", "in every call"],
        ),
        (
            drawn(lambda rng, a: np.zeros(2), 4),
            ValueError,
            ["returned shape (2,), expected (4, 2)", "write vectorized=False"],
        ),
        (
            drawn(lambda rng, a: np.zeros(3), 4, vectorized=False),
            ValueError,
            ["returned shape (3,), expected (2,) = event_shape", "for one run"],
        ),
        (
            drawn(lambda rng, a: np.zeros((4, 2), complex), 4),
            TypeError,
            ["array of real numbers, got ndarray of type complex128"],
        ),
        (drawn(lambda rng, a: None, 4), TypeError, ["got NoneType of type object"]),
        (drawn(lambda rng, a: "failed", 4), TypeError, ["got str of type", "that failed return"]),
        (drawn(lambda rng, a: [[0.0, 1.0], [2.0]], 4), TypeError, ["got list (", "inhomogeneous"]),
    ],
)
def test_wrong_results(mistake, error, parts):
    assert_refused_alike(mistake, error=error, match=".*".join(map(re.escape, parts)))


@in_both
def test_a_function_that_changes_its_shape(b):
    lengths = iter([2, 3])

    def fn(rng, a):
        return np.zeros((len(a), next(lengths)))

    distribution = simulator(b, fn, b.np.zeros(4), event_shape=(2,))
    draw(b, distribution)
    with pytest.raises(ValueError, match=r"returned shape \(4, 3\).*the same in every call"):
        draw(b, distribution)


@in_both
def test_there_is_no_density(b):
    fn = simulator(b, noisy, b.np.zeros(4), event_shape=())
    for one in (fn, fn.expand((2, 4)), fn.to_event(1), fn.mask(b.np.ones(4) > 0)):
        with pytest.raises(NotImplementedError) as caught:
            one.log_prob(b.np.zeros(4))
        for name in ("amortize", "JointContrastELBO", "divergence=KL()"):
            assert name in str(caught.value)


def program(b, x=None):
    z = b.sample("z", b.dist.Normal(b.np.zeros(3), 1.0).to_event(1))
    b.sample("w", b.dist.Normal(b.np.zeros(()), 1.0))
    with b.plate("data", 4):
        b.sample("x", simulator(b, settled, 0.3, z, **TWO), obs=x)


def test_inspection_sees_what_a_density_would_depend_on():
    def dependencies(b):
        return b.infer.inspect.get_dependencies(
            functools.partial(program, b), (b.np.zeros((4, 2)),)
        )

    found = dependencies(Pyro)
    assert found == dependencies(NumPyro)
    assert found["prior_dependencies"]["x"] == {"x": set(), "z": set()}
    assert found["posterior_dependencies"]["z"] == {"z": set(), "x": set()}
