# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Which argument carries which site, without any backend."""

import functools

import pytest

from spread_core.arguments import (
    argument_name,
    get_argument,
    locate_data,
    positional_names,
    replace_arguments,
)


def plain(x, y, *, z=None):
    return None


def defaults(batch, x=None, /, y=1, **rest):
    return None


def anything(*args, **kwargs):
    return None


class Module:
    """Like a torch module: the signature of the call says nothing, that of forward does."""

    def forward(self, images, labels):
        return None

    def __call__(self, *args, **kwargs):
        return None


class Object:
    def __call__(self, a, b):
        return None

    def method(self, c, d):
        return None

    @staticmethod
    def static(e):
        return None


class Unhashable:
    __hash__ = None

    def __call__(self, a):
        return None


@functools.wraps(plain)
def wrapped(*args, **kwargs):
    return None


NAMES = [
    (plain, ["x", "y"]),
    (defaults, ["batch", "x", "y"]),
    (anything, []),
    (Module(), ["images", "labels"]),
    (Object(), ["a", "b"]),
    (Object().method, ["c", "d"]),
    (Object.static, ["e"]),
    (Unhashable(), ["a"]),
    (wrapped, ["x", "y"]),
    (functools.partial(plain, 1), ["y"]),
    (functools.partial(plain, y=1), ["x"]),
    (lambda q: q, ["q"]),
    (dict, []),
]


@pytest.mark.parametrize(("fn", "names"), NAMES)
def test_positional_names(fn, names):
    assert positional_names(fn) == names
    assert positional_names(fn) == names  # remembered


def test_names_are_not_mixed_up_between_short_lived_functions():
    for i in range(50):
        scope: dict = {}
        exec(f"def fn(a{i}): pass", scope)
        assert positional_names(scope["fn"]) == [f"a{i}"]


LOCATED = [
    # fn, sites, args, kwargs, data, expected
    (plain, ["x"], (1, 2), {}, None, {"x": 0}),
    (plain, ["y"], (1, 2), {}, None, {"y": 1}),
    (plain, ["y", "x"], (1, 2), {}, None, {"y": 1, "x": 0}),
    (plain, ["z"], (1, 2), {"z": 3}, None, {"z": "z"}),
    (plain, ["pixels"], (1, 2), {}, None, {"pixels": 0}),
    (plain, ["pixels"], (1, 2), {}, {"pixels": "y"}, {"pixels": 1}),
    (plain, ["pixels"], (1,), {"y": 2}, {"pixels": "y"}, {"pixels": "y"}),
    (plain, ["x"], (1, 2), {}, {"x": "y"}, {"x": 1}),
    (plain, ["pixels"], (), {"y": 2, "x": 1}, None, {"pixels": "x"}),
    (plain, ["y", "pixels"], (1, 2), {}, None, {"y": 1, "pixels": 0}),
    (anything, ["x"], (1, 2), {}, None, {"x": 0}),
    (anything, ["x"], (1, 2), {"x": 3}, None, {"x": "x"}),
    (anything, ["x"], (), {"b": 1, "a": 2}, None, {"x": "b"}),
    (anything, ["x"], (1, 2), {}, {"x": "*args[1]"}, {"x": 1}),
    (defaults, ["x"], (1,), {}, None, {"x": 0}),
    (defaults, ["x"], (1, 2), {}, None, {"x": 1}),
    (Module(), ["labels"], (1, 2), {}, None, {"labels": 1}),
    (plain, [], (1, 2), {}, None, {}),
]


@pytest.mark.parametrize(("fn", "sites", "args", "kwargs", "data", "expected"), LOCATED)
def test_locate_data(fn, sites, args, kwargs, data, expected):
    assert locate_data(fn, sites, args, kwargs, data) == expected


def test_data_names_an_argument_that_is_not_there():
    message = r"site 'x': data= says .* 'images' carries it.*it has \['x', 'z'\]"
    with pytest.raises(ValueError, match=message):
        locate_data(plain, ["x"], (1,), {"z": 2}, {"x": "images"})


def test_argument_left_at_its_default_is_not_there():
    with pytest.raises(ValueError, match="no such argument"):
        locate_data(defaults, ["x"], (1,), {}, {"x": "y"})


def test_no_arguments_at_all():
    with pytest.raises(ValueError, match=r"site 'x'.*Pass the data as an argument"):
        locate_data(plain, ["x"], (), {})


@pytest.mark.parametrize(
    ("sites", "data", "argument"),
    [
        (["pixels", "labels"], None, "x"),
        (["x", "pixels"], None, "x"),
        (["a", "b"], {"a": "y", "b": "y"}, "y"),
    ],
)
def test_one_argument_for_two_sites(sites, data, argument):
    with pytest.raises(ValueError, match=f"both take their data from .* '{argument}'") as caught:
        locate_data(plain, sites, (1, 2), {}, data)
    assert all(f"'{site}': ..." in str(caught.value) for site in sites)


def test_shared_keyword_argument():
    with pytest.raises(ValueError, match="model argument 'x'"):
        locate_data(plain, ["a", "b"], (), {"x": 1})


def test_get_and_name():
    assert get_argument(1, (1, 2), {"z": 3}) == 2
    assert get_argument("z", (1, 2), {"z": 3}) == 3
    assert argument_name(1, plain) == "y"
    assert argument_name("z", plain) == "z"
    assert argument_name(3, plain) == "*args[3]"
    assert argument_name(0, anything) == "*args[0]"


def test_replace_leaves_the_originals():
    args, kwargs = (1, 2, 3), {"a": 4, "b": 5}
    new = replace_arguments({1: "y", "b": None}, args, kwargs)
    assert new == ((1, "y", 3), {"a": 4, "b": None})
    assert (args, kwargs) == ((1, 2, 3), {"a": 4, "b": 5})
    assert new[1] is not kwargs
