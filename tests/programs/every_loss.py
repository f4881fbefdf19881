# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every loss, once, on one small problem: tests of both backends read this list."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Loss:
    """
    A loss as both packages make it, and what it is tried on.

    :param make: from a package, and a function that makes a critic of the named sites, to the loss.
    :param guide: the kind of guide: ``"empty"``, ``"normal"`` or ``"implicit"``.
    :param likely: whether the model must have a likelihood; else its output is deterministic.
    :param has_critic: whether there are two players.
    :param trains_model: whether the model learns, and not the guide alone.
    :param simulates: whether it draws the data from the model, and does not score them.
    :param exempt: contract to the reason why the loss need not keep it.
    """

    make: Callable[[Any, Callable[..., Any]], Any]
    guide: str
    likely: bool = False
    has_critic: bool = False
    trains_model: bool = True
    simulates: bool = False
    exempt: dict[str, str] = field(default_factory=dict)


def noise(p):
    """The noise of the data, in a package."""
    return {"x": p.GaussianNoise(0.5)}


def _compares(make, **options):
    """A loss that compares draws of the model with data, without a guide."""
    return Loss(make, "empty", simulates=True, **options)


# Failed simulations under noise: NumPyro's own distribution refuses them before they are counted.
_UNCOUNTED = {
    "failed simulations, NumPyro eager": "the noise's distribution refuses a NaN loc first"
}
_OWN_LAYOUT = dict.fromkeys(
    ("columns before rows", "columns before rows, masked"),
    "noise is drawn in the site's own layout",
)


def _adversarial(divergence, exempt=None, **options):
    def make(p, critic):
        made = {name: option(p) for name, option in options.items()}
        return p.AdversarialDivergence(critic("x"), divergence(p), **made)

    exempt = (exempt or {}) | (_OWN_LAYOUT | _UNCOUNTED if "noise" in options else {})
    return _compares(make, has_critic=True, exempt=exempt)


def _prior(**options):
    return Loss(
        lambda p, critic: p.PriorContrastELBO(critic("z", "x"), noise(p), **options),
        "implicit",
        has_critic=True,
    )


LOSSES = {
    "spread": Loss(lambda p, critic: p.SpreadELBO(noise(p)), "normal"),
    "JS": _adversarial(lambda p: p.JSPi(0.5)),
    "JS.1 spread": _adversarial(lambda p: p.JSPi(0.1), noise=noise),
    "KL R1": _adversarial(
        lambda p: p.KL(),
        exempt={"failed simulations, NumPyro compiled": "its value is a mean over the data alone"},
        regularizer=lambda p: p.R1(1.0),
    ),
    "reverse KL two passes": _adversarial(lambda p: p.ReverseKL(), update=lambda p: "two_pass"),
    "Wasserstein": _compares(lambda p, critic: p.WassersteinCritic(critic("x")), has_critic=True),
    "adaptive": _prior(),
    "plain": _prior(adaptive=False),
    "joint": Loss(
        lambda p, critic: p.JointContrastELBO(critic("z", "x"), noise=noise(p)),
        "implicit",
        has_critic=True,
        simulates=True,
        exempt=_UNCOUNTED,
    ),
    "joint KL": Loss(
        lambda p, critic: p.JointContrastELBO(divergence=p.KL()),
        "normal",
        trains_model=False,
        simulates=True,
    ),
    "semi": Loss(
        lambda p, critic: p.SemiImplicitELBO({"z": p.GaussianNoise(0.3)}, 3),
        "implicit",
        likely=True,
    ),
    "MMD": _compares(lambda p, critic: p.MMD(p.GaussianKernel(2.0))),
    "energy": _compares(
        lambda p, critic: p.EnergyDistance(),
        exempt={"failed simulations, NumPyro compiled": "NaN has the distance 0 from everything"},
    ),
    "sliced": _compares(lambda p, critic: p.SlicedWasserstein(20)),
}
# More uses of these losses, for contracts in which noise makes a difference.
WITHOUT_NOISE = {
    "joint without noise": Loss(
        lambda p, critic: p.JointContrastELBO(critic("z", "x")),
        "implicit",
        has_critic=True,
        simulates=True,
    ),
    "joint, guide with a density": Loss(
        lambda p, critic: p.JointContrastELBO(critic("z", "x")),
        "normal",
        has_critic=True,
        simulates=True,
    ),
    "prior without noise": Loss(
        lambda p, critic: p.PriorContrastELBO(critic("z", "x")),
        "implicit",
        likely=True,
        has_critic=True,
    ),
}
WITH_NOISE = {
    "MMD with noise": _compares(
        lambda p, critic: p.MMD(p.GaussianKernel([0.5, 1.0]), noise=noise(p)),
        exempt={"columns before rows, masked": "a masked site draws its noise, in its own layout"},
    ),
    "energy with noise": _compares(
        lambda p, critic: p.EnergyDistance(noise={"x": p.LaplaceNoise(0.3)}), exempt=_OWN_LAYOUT
    ),
}
TRAINS_MODEL = [name for name, loss in LOSSES.items() if loss.trains_model]
HAS_CRITIC = [name for name, loss in LOSSES.items() if loss.has_critic]
COMPARES = [name for name, loss in LOSSES.items() if loss.guide == "empty"]
GUIDED = [name for name, loss in LOSSES.items() if loss.guide != "empty"]
