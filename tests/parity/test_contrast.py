# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""PriorContrastELBO has a twin: the same weights and draws give the same value and gradients."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen
from torch import nn
from twins import CRITIC, FlaxNet, NumPyro, Pyro, compare, numbers, torch_net, weights

from numpyro_spread.infer._gaussian_contrast import GaussianContrast as JaxContrast
from numpyro_spread.ratio import adapters as jax_adapters
from pyro_spread.infer._gaussian_contrast import GaussianContrast as TorchContrast
from pyro_spread.ratio import adapters as torch_adapters

N, D, MOMENTS, DRAWS = 4, 2, 6, 3
DATA, MASK, SCALE = numbers("x", N, D), numbers("mask", N) > -0.5, np.exp(numbers("scale", N))
PARAMS = {
    "mw": 0.2,
    "m": numbers("m", D),
    "s": 0.6,
    "u": 0.4,
    "mu": 0.3,
    "noise": 0.7,
    "features scale": 0.9,
}
# name -> shapes of what the critic sees
CRITICS = {"z": ("z", "x", "w"), "y": ("y", "z", "x"), "both": ("z", "y", "x", "w")}
WEIGHTS = {name: weights(name, 6 if name == "both" else 5) for name in CRITICS}
HEAD = np.array([0.3, 0.8])


def around(b, how):
    """Plate sizes apart, what may act on the plate: a mask, a scale of every datum, a number."""
    if how == "mask":
        return b.handlers.mask(mask=b.array(MASK))
    return b.handlers.scale(scale=b.array(SCALE) if how == "scale" else 1.0)


FACTOR = np.array([[1.0, 9.0], [0.4, 0.7]])  # what is above the diagonal does not count


class TorchHead(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(HEAD))
        self.factor = torch.as_tensor(factor)

    def forward(self, x):
        loc, scale = self.weight[0] * x, self.weight[1]
        of_z = scale if self.factor.dim() == 0 else (scale * self.factor).expand(len(x), D, D)
        return {"z": (loc, of_z), "y": (loc.sum(-1), scale)}


class FlaxHead(linen.Module):
    factor: object = 1.0

    @linen.compact
    def __call__(self, x):
        weight = self.param("weight", lambda key: jnp.asarray(HEAD))
        loc, scale = weight[0] * x, weight[1]
        of_z = scale
        if np.ndim(self.factor):
            of_z = jnp.broadcast_to(scale * jnp.asarray(self.factor), (len(x), D, D))
        return {"z": (loc, of_z), "y": (loc.sum(-1), scale)}


def contrast_numbers(contrast, sample_shape):
    """In the place of a contrast's draws."""
    shape = tuple(contrast.loc.shape)
    return numbers(f"contrast {len(shape)}", *sample_shape, *shape)


def program(b, how, size, delta):
    """Model, guide and noise."""

    def param(name):
        return b.param(name, PARAMS[name])

    def data_plate():
        return b.plate("data", size, subsample_size=N)

    def implicit(name, fn, *args, event_shape=()):
        base = b.normal(name, b.np.zeros((N, *event_shape)), 1.0).to_event(len(event_shape))
        return b.package.ImplicitDistribution(b.partial(fn, *args), base, event_shape)

    def model(x):
        w = b.sample("w", b.dist.Normal(param("mu"), 1.0))
        with data_plate(), around(b, how):
            loc = b.np.broadcast_to(param("mu") * w, (N, D))
            z = b.sample("z", b.normal("prior z", loc, 1.0).to_event(1))
            y = b.sample("y", b.normal("prior y", z.sum(-1), 0.7))
            mean = b.np.tanh(z + y[:, None])
            fn = b.dist.Delta(mean) if delta else b.dist.Normal(mean, 0.5)
            b.sample("x", fn.to_event(1), obs=x)

    def guide(x):
        m, s, u = param("m"), param("s"), param("u")
        w = b.sample("w", b.normal("w", param("mw"), 0.5))

        def draw_z(m, w, s, eps):
            return m * x + w + s * b.np.sinh(eps)

        def draw_y(u, z, s, eps):
            return u * z.sum(-1) + s * eps

        with data_plate(), around(b, how):
            b.deterministic("features", b.np.tanh(param("features scale") * x))
            z = b.sample("z", implicit("z", draw_z, m, w, s, event_shape=(D,)))
            b.sample("y", implicit("y", draw_y, u, z, s))

    return model, guide, lambda x: {"x": b.noise(param("noise"))}


def contrast_loss(package, critic_of, head, noise, case):
    critics = {name: critic_of(name) for name in case["critics"]}
    options = {k: v for k, v in case.items() if k not in ("critics", "how", "size", "make")}
    options.update(case.get("make", lambda package: {})(package))
    if options.pop("noise", False):
        options["noise"] = noise
    by_features = options.pop("features", False)
    options.pop("factor", None)
    if options.pop("head", False):
        options["head"] = package.concat_sites(head, "features") if by_features else head

    def seen(name):
        return ["features" if by_features and n == "x" else n for n in CRITICS[name]]

    critics = {n: package.concat_sites(critic, *seen(n)) for n, critic in critics.items()}
    return package.PriorContrastELBO(
        critics.get("both", critics), num_moment_draws=MOMENTS, **options
    )


SEPARATE = {"critics": ("z", "y"), "num_critic_draws": DRAWS}
JOINT = {"critics": ("both",)}
CASES = {
    "adaptive": {**SEPARATE, "how": "scale"},
    "adaptive, mini-batch": {**SEPARATE, "size": 10 * N},
    "adaptive, own draws, mask": {**SEPARATE, "num_critic_draws": 1, "how": "mask"},
    "adaptive, one critic": {**JOINT, "how": "mask"},
    "head": {**SEPARATE, "head": True, "how": "scale"},
    "features": {**SEPARATE, "features": True, "head": True, "how": "scale", "size": 10 * N},
    "features, one critic": {**JOINT, "features": True, "how": "mask"},
    "full covariance": {**SEPARATE, "head": True, "factor": FACTOR, "how": "mask"},
    "plain": {**SEPARATE, "adaptive": False, "how": "mask", "size": 10 * N},
    "plain, own draws": {**SEPARATE, "adaptive": False, "num_critic_draws": 1},
    "plain, one critic": {**JOINT, "adaptive": False, "how": "scale"},
    "noise": {**SEPARATE, "noise": True, "annealing": lambda x: 0.3},
    "penalty": {**SEPARATE, "make": lambda package: {"regularizer": package.R1(2.0)}},
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name, monkeypatch):
    monkeypatch.setattr(
        TorchContrast, "draw", lambda c, shape=(): torch.tensor(contrast_numbers(c, shape))
    )
    monkeypatch.setattr(
        JaxContrast, "draw", lambda c, key, shape=(): jnp.asarray(contrast_numbers(c, shape))
    )
    case = {"how": None, "size": N, **CASES[name]}

    def result(b):
        nets = {n: torch_net(WEIGHTS[n]) for n in case["critics"]}
        critics = b.pick(nets, dict.fromkeys(nets, FlaxNet()))
        factor = case.get("factor", 1.0)
        head = TorchHead(factor)
        learned = {CRITIC: nets.get("both", nets)}
        if case.get("head"):
            learned["discriminator$head"] = head
        model, guide, noise = program(b, case["how"], case["size"], case.get("noise", False))
        loss = contrast_loss(b.package, critics.get, b.pick(head, FlaxHead(factor)), noise, case)
        return b.loss_and_grads(
            loss, model, guide, DATA, params=PARAMS, nets=learned, compiled=True
        )

    _, grads = compare(result)
    for n in PARAMS:
        # What the critic looks up does not learn from it.
        learned = n not in ("noise", "features scale") or case.get(n, False)
        assert (np.abs(grads[n]).max() > 1e-3) == learned
    learned = grads[CRITIC]
    for layers in [learned] if "both" in case["critics"] else learned.values():
        assert np.abs(layers["Dense_0"]["kernel"]).max() > 1e-3
    if case.get("head"):
        assert np.abs(grads["discriminator$head"]["weight"]).min() > 1e-3


def test_a_head_that_looks_nothing_up():
    def mistake(b):
        critic, head = b.pick(torch_net(WEIGHTS["z"]), FlaxNet()), b.pick(TorchHead(), FlaxHead())
        critic = b.package.concat_sites(critic, "z", "x", "w")
        b.package.PriorContrastELBO(critic, head=b.package.concat_sites(head))

    for b in (Pyro, NumPyro):
        with pytest.raises(ValueError, match=r"has nothing to look up.*concat_sites\(net, 'x'\)"):
            mistake(b)


def test_what_a_head_looks_up_keeps_its_precision():
    for b in (Pyro, NumPyro):
        x, adapters = b.array(np.ones((2, 3), np.float32)), b.pick(torch_adapters, jax_adapters)
        values = adapters.SiteValues({}, (2,), {"x": x, "labels": b.array([0, 1])})
        assert adapters.site_features(values, "x").dtype == x.dtype
        assert "float64" in str(adapters.site_features(values, "labels").dtype)
