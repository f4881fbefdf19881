# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""JointContrastELBO has a twin: the same weights and draws give the same value and gradients."""

import numpy as np
import pytest
from twins import CRITIC, FlaxNet, compare, numbers, torch_net, weights

N, D = 5, 2
DATA, MASK = numbers("joint x", N, D), numbers("joint mask", N) > -0.5
PARAMS = {"mw": 0.2, "m": numbers("m", D), "s": 0.6, "mu": 0.3, "a": 0.8}
SHOWN = {False: ("x", "z"), True: ("x", "z", "w")}
WEIGHTS = {latent: weights(f"joint {latent}", 4 + latent) for latent in SHOWN}


def program(b, masked, size, latent, dense):
    """A simulator with a learned prior; if ``latent``, a global one above it."""

    def param(name):
        return b.param(name, PARAMS[name])

    def data():
        return b.plate("data", size, subsample_size=N)

    def mask():
        return b.handlers.mask(mask=b.array(MASK) if masked else True)

    def implicit(name, fn, *args):
        base = b.normal(name, b.np.zeros((N, D)), 1.0).to_event(1)
        return b.package.ImplicitDistribution(b.partial(fn, *args), base, (D,))

    def model(x):
        mu, a = param("mu"), param("a")
        w = b.sample("w", b.dist.Normal(mu, 1.0)) if latent else mu
        with data(), mask():
            fn = implicit("model z", lambda w, a, eps: w + a * b.np.sinh(eps), w, a)
            z = b.sample("z", fn)
            fn = implicit("x", lambda z, a, eps: b.np.tanh(z + a * eps), z, a)
            b.sample("x", fn, obs=x)

    def guide(x):
        m, s = param("m"), param("s")
        w = b.sample("w", b.normal("w", param("mw"), 0.5)) if latent else 0.0
        with data(), mask():
            if dense:
                b.sample("z", b.dist.Normal(m * x, s).to_event(1))
                return
            fn = implicit("z", lambda m, w, s, eps: m * x + w + s * b.np.sinh(eps), m, w, s)
            b.sample("z", fn)

    return model, guide, {"x": b.noise(0.7)}


CASES = {
    "reverse-kl": ("ReverseKL", {"size": 10 * N}),
    "reverse-kl, global latent": ("ReverseKL", {"size": 10 * N, "latent": True}),
    "js.5": ("JSPi", {"pi": 0.5}),
    "js.2, masked": ("JSPi", {"pi": 0.2, "masked": True}),
    "kl": ("KL", {}),
    "noise": ("JSPi", {"pi": 0.5, "spread": True}),
    "penalty": ("ReverseKL", {"penalty": 2.0, "masked": True}),
    "kl with a density": ("KL", {"dense": True}),
}


def joint_loss(package, name, critic, noise, pi=None, penalty=None, latent=False, **others):
    divergence = getattr(package, name)(*([] if pi is None else [pi]))
    options = {"noise": noise} if others.get("spread") else {}
    if penalty is not None:
        options["regularizer"] = package.R1(penalty)
    if others.get("dense"):
        return package.JointContrastELBO(divergence=divergence)
    critic = package.concat_sites(critic, *SHOWN[latent])
    return package.JointContrastELBO(critic, divergence, **options)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name):
    divergence, options = CASES[name]
    latent, dense = options.get("latent", False), options.get("dense", False)
    setting = options.get("masked", False), options.get("size", N), latent, dense

    def result(b):
        model, guide, noise = program(b, *setting)
        net = torch_net(WEIGHTS[latent])
        loss = joint_loss(b.package, divergence, b.pick(net, FlaxNet()), noise, **options)
        nets = {CRITIC: net}
        return b.loss_and_grads(loss, model, guide, DATA, params=PARAMS, nets=nets, compiled=True)

    _, grads = compare(result)
    learned = {"m", "s"} if dense else {"m", "s", "mu", "a"}
    learned |= {"mw"} if latent else set()
    assert learned <= {n for n in PARAMS if grads[n].any()}
    for layer in grads[CRITIC].values():
        assert dense or all(np.abs(grad).max() > 1e-4 for grad in layer.values())
