# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every noise kernel, kernel of MMD, divergence and loss, once: all tests read these lists."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from whole_programs import Table

_RNG = np.random.default_rng(2)
VECTOR = np.array([0.2, 0.5, 1.5])
MATRIX = np.array([[0.7, 0.1, 0.0], [0.2, 0.8, 0.3], [0.1, 0.1, 0.7]])
SYMMETRIC = 0.6 * np.eye(3) + 0.4 / 3


@dataclass(frozen=True)
class Kernel:
    """
    A kernel as both packages make it.

    :param make: from a package, its module of distributions and the params to the kernel.
    :param params: their values by name; a number stays one, an array becomes the backend's.
    :param event_shape: event shape of x.
    :param y_event_shape: event shape of y, where it differs.
    :param discrete: whether x is a label, 0, 1 or 2.
    :param positive: whether x must be positive.
    :param stationary: whether it has a characteristic function.
    :param variant: whether a shorter case of the same class stands in the list, so that what is
        slow to compile need not be repeated.
    """

    make: Callable[..., Any]
    params: dict[str, Any] = field(default_factory=lambda: {"scale": 0.4})
    event_shape: tuple[int, ...] = ()
    y_event_shape: tuple[int, ...] | None = None
    discrete: bool = False
    positive: bool = False
    stationary: bool = True
    variant: bool = False

    @property
    def event_dim(self) -> int:
        return len(self.event_shape)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.event_shape if self.y_event_shape is None else self.y_event_shape

    @property
    def size(self) -> int:
        return int(np.prod(self.event_shape))

    @property
    def scales(self) -> list[str]:
        """Names of the params that a change of units of x and y multiplies."""
        return [name for name in self.params if name in ("scale", "factor")]

    def build(self, package: Any, array: Callable[[Any], Any], **changed: Any) -> Any:
        """
        The kernel in a package.

        :param package: ``pyro_spread`` or ``numpyro_spread``.
        :param array: makes an array of the backend out of one of NumPy.
        :param changed: params to take in place of the list's, as they are.
        """
        params = {n: v if np.isscalar(v) else array(v) for n, v in self.params.items()}
        backend = package.__name__.removesuffix("_spread")
        return self.make(
            package, importlib.import_module(f"{backend}.distributions"), **(params | changed)
        )

    def x(self, batch_shape: tuple[int, ...] = ()) -> np.ndarray:
        """Values of the site in float64, the same at every call."""
        rng, shape = np.random.default_rng(1), (*batch_shape, *self.event_shape)
        if self.discrete:
            return rng.integers(0, 3, shape)
        x = rng.normal(size=shape)
        return np.exp(x) if self.positive else x


def _plain(name: str) -> Callable[..., Any]:
    """Makes the kernel of that name from its own params."""
    return lambda p, d, **params: getattr(p, name)(**params)


_gaussian, _laplace = _plain("GaussianNoise"), _plain("LaplaceNoise")
_student, _logistic = _plain("StudentTNoise"), _plain("LogisticNoise")


def _levels(base: Callable[..., Any], levels: Any = (0.5, 1.0, 3.0)) -> Callable[..., Any]:
    """Makes a kernel at several levels."""
    return lambda p, d, levels=levels, weights=(1.0, 2.0, 1.0), **params: p.MultiLevelNoise(
        base(p, d, **params), levels, weights
    )


_low_rank, _channel = _plain("LowRankGaussianNoise"), _plain("ChannelNoise")


def _around(transform: Callable[[Any], Any], base: Callable[..., Any] = _gaussian) -> Any:
    """Makes a kernel under a transform."""
    return lambda p, d, **params: p.TransformedNoise(transform(d.transforms), base(p, d, **params))


def _factor(*shape: int) -> np.ndarray:
    return _RNG.normal(size=shape)


def _permute(transforms: Any) -> Any:
    if "numpyro" in transforms.__name__:
        return transforms.PermuteTransform(np.array([2, 0, 1]))
    import torch

    return transforms.Permute(torch.tensor([2, 0, 1]))


KERNELS = {
    "gaussian": Kernel(_gaussian),
    "gaussian-event": Kernel(_gaussian, event_shape=(2, 3), variant=True),
    "gaussian-0d-array": Kernel(_gaussian, {"scale": np.array(0.4)}, (3,), variant=True),
    "gaussian-vector": Kernel(_gaussian, {"scale": VECTOR}, event_shape=(3,)),
    "laplace": Kernel(_laplace),
    "laplace-vector": Kernel(_laplace, {"scale": VECTOR}, event_shape=(3,), variant=True),
    "cauchy": Kernel(_student, {"df": 1.0, "scale": 0.4}),
    "student": Kernel(_student, {"df": 3, "scale": 0.4}, event_shape=(2,), variant=True),
    "student-vector": Kernel(
        _student, {"df": np.array([1.0, 2.5, 30.0]), "scale": VECTOR}, (3,), variant=True
    ),
    "logistic": Kernel(_logistic),
    "logistic-vector": Kernel(_logistic, {"scale": VECTOR}, event_shape=(3,), variant=True),
    "low-rank": Kernel(_low_rank, {"scale": 0.4, "factor": _factor(4, 2)}, (4,)),
    "low-rank-image": Kernel(
        _low_rank, {"scale": 0.4, "factor": _factor(6, 1)}, (2, 3), variant=True
    ),
    "low-rank-vector-scale": Kernel(
        _low_rank,
        {"scale": np.array([0.1, 0.2, 0.4]), "factor": _factor(3, 2)},
        event_shape=(3,),
        variant=True,
    ),
    "levels": Kernel(_levels(_gaussian), {"scale": 0.4, "levels": np.array([0.5, 1.0, 3.0])}),
    "levels-laplace": Kernel(_levels(_laplace), {"scale": 0.4}, variant=True),
    "levels-low-rank": Kernel(
        _levels(_low_rank), {"scale": 0.4, "factor": _factor(4, 2)}, (4,), variant=True
    ),
    "transformed-exp": Kernel(_around(lambda t: t.ExpTransform()), stationary=False),
    "transformed-power": Kernel(
        _around(lambda t: t.PowerTransform(2.0)), positive=True, stationary=False, variant=True
    ),
    "transformed-permute": Kernel(
        _around(_permute), event_shape=(3,), stationary=False, variant=True
    ),
    "transformed-widens": Kernel(
        _around(lambda t: t.StickBreakingTransform()),
        event_shape=(3,),
        y_event_shape=(4,),
        stationary=False,
    ),
    "transformed-low-rank": Kernel(
        _around(lambda t: t.SoftplusTransform(), _low_rank),
        {"scale": 0.3, "factor": _factor(3, 1)},
        event_shape=(3,),
        stationary=False,
    ),
    "channel": Kernel(_channel, {"matrix": MATRIX}, discrete=True, stationary=False),
    "channel-symmetric": Kernel(
        _channel, {"matrix": SYMMETRIC}, (2,), discrete=True, stationary=False, variant=True
    ),
}
STATIONARY = [name for name, kernel in KERNELS.items() if kernel.stationary]
CONTINUOUS = [name for name, kernel in KERNELS.items() if not kernel.discrete]


VARIANCES = np.array([0.1, 0.4, 0.9])


def _exp_squares(r, width):
    return np.exp(-0.5 * (r @ r) / width**2)


def _convolved(r, width, variance):
    total = width**2 + 2 * variance
    return np.prod(np.sqrt(width**2 / total) * np.exp(-0.5 * r**2 / total))


def _rational(r, length, alpha):
    return (1 + r @ r / (2 * alpha * length**2)) ** -alpha


# name -> (constructor given a package, the same as a function of one difference in NumPy)
MMD_KERNELS = {
    "gaussian": (lambda p: p.GaussianKernel(0.8), lambda r: _exp_squares(r, 0.8)),
    "gaussian-mixture": (
        lambda p: p.GaussianKernel([0.5, 2.0, 3.0]),
        lambda r: np.mean([_exp_squares(r, width) for width in (0.5, 2.0, 3.0)]),
    ),
    "convolved": (
        lambda p: p.GaussianKernel(0.8).convolved(0.3),
        lambda r: _convolved(r, 0.8, np.full(len(r), 0.3)),
    ),
    "convolved-mixture": (
        lambda p: p.GaussianKernel((0.8, 2.0)).convolved(VARIANCES),
        lambda r: np.mean([_convolved(r, width, VARIANCES) for width in (0.8, 2.0)]),
    ),
    "rational": (lambda p: p.RationalQuadraticKernel(0.7, 1.5), lambda r: _rational(r, 0.7, 1.5)),
    "rational-mixture": (
        lambda p: p.RationalQuadraticKernel(0.7, [0.5, 2.0]),
        lambda r: np.mean([_rational(r, 0.7, alpha) for alpha in (0.5, 2.0)]),
    ),
    "laplace": (
        lambda p: p.LaplaceKernel([0.7, 1.4]),
        lambda r: np.mean([np.exp(-np.abs(r).sum() / width) for width in (0.7, 1.4)]),
    ),
}
# Those that take samples of any dimension.
ANY_WIDTH = [name for name in MMD_KERNELS if name != "convolved-mixture"]


def _jspi(pi, normalised=False):
    scale = 1 / (pi * (1 - pi)) if normalised else 1.0

    def f(u):
        m = 1 - pi + pi * u
        return scale * (pi * u * np.log(u) - m * np.log(m))

    def f_prime(u):
        return scale * pi * np.log(u / (1 - pi + pi * u))

    def conjugate(t):
        return scale * (1 - pi) * np.log((1 - pi) / (1 - pi * np.exp(t / (scale * pi))))

    return lambda p: p.JSPi(pi, normalised=normalised), f, f_prime, conjugate


# name -> (constructor given a package; f, f' and the conjugate f* in NumPy, where f* is short)
DIVERGENCES = {
    "kl": (
        lambda p: p.KL(),
        lambda u: u * np.log(u),
        lambda u: np.log(u) + 1,
        lambda t: np.exp(t - 1),
    ),
    "reverse kl": (
        lambda p: p.ReverseKL(),
        lambda u: -np.log(u),
        lambda u: -1 / u,
        lambda t: -1 - np.log(-t),
    ),
    "js .1": _jspi(0.1),
    "js .5": _jspi(0.5),
    "js .9": _jspi(0.9),
    "js .2 normalised": _jspi(0.2, normalised=True),
    "squared hellinger": (
        lambda p: p.SquaredHellinger(),
        lambda u: (np.sqrt(u) - 1) ** 2,
        lambda u: 1 - 1 / np.sqrt(u),
        lambda t: t / (1 - t),
    ),
    "chi-squared": (
        lambda p: p.ChiSquared(),
        lambda u: (u - 1) ** 2,
        lambda u: 2 * (u - 1),
        lambda t: t + t**2 / 4,
    ),
    "reverse chi-squared": (
        lambda p: p.ReverseChiSquared(),
        lambda u: (u - 1) ** 2 / u,
        lambda u: 1 - 1 / u**2,
        lambda t: 2 - 2 * np.sqrt(1 - t),
    ),
    "jeffreys": (
        lambda p: p.Jeffreys(),
        lambda u: (u - 1) * np.log(u),
        lambda u: np.log(u) + 1 - 1 / u,
        None,
    ),
    "least squares": (
        lambda p: p.LeastSquares(),
        lambda u: u * np.log(2 * u / (1 + u)) - (u - 1) ** 2 / (u + 1) / 8,
        lambda u: np.log(2 * u / (1 + u)) + 1 / (1 + u) - (u - 1) * (u + 3) / (u + 1) ** 2 / 8,
        None,
    ),
    "total variation": (lambda p: p.TotalVariation(), lambda u: np.abs(u - 1) / 2, None, None),
}
TRAINED = [name for name in DIVERGENCES if name != "total variation"]
BOUNDED = [name for name in DIVERGENCES if name.startswith(("js", "squared", "least", "total"))]


def instances(package, names=DIVERGENCES):
    """The divergences of a package."""
    return [DIVERGENCES[name][0](package) for name in names]


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


_OWN_LAYOUT = dict.fromkeys(
    ("columns before rows", "columns before rows, masked"),
    "noise is drawn in the site's own layout",
)


def _adversarial(divergence, exempt=None, **options):
    def make(p, critic):
        made = {name: option(p) for name, option in options.items()}
        return p.AdversarialDivergence(critic("x"), divergence(p), **made)

    exempt = (exempt or {}) | (_OWN_LAYOUT if "noise" in options else {})
    return _compares(make, has_critic=True, exempt=exempt)


def _prior(**options):
    return Loss(
        lambda p, critic: p.PriorContrastELBO(critic("z", "x"), noise(p), **options),
        "implicit",
        has_critic=True,
    )


def _joint(guide, noise=None, **options):
    def make(p, critic):
        return p.JointContrastELBO(critic("z", "x"), noise=None if noise is None else noise(p))

    return Loss(make, guide, has_critic=True, simulates=True, **options)


def _estimation(**options):
    def make(p, critic):
        return p.JointContrastELBO(divergence=p.KL(), **options)

    return Loss(make, "normal", trains_model=False, simulates=True)


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
    # Without a penalty this game goes in circles, in single precision too.
    "hinge": _compares(
        lambda p, critic: p.HingeCritic(critic("x"), regularizer=p.R1(1.0)), has_critic=True
    ),
    "least squares": _compares(
        lambda p, critic: p.LeastSquaresCritic(critic("x")), has_critic=True
    ),
    "relativistic": _compares(lambda p, critic: p.RelativisticCritic(critic("x")), has_critic=True),
    "unrolled": _adversarial(
        lambda p: p.JSPi(0.5), regularizer=lambda p: p.R1(1.0), unroll=lambda p: 2
    ),
    "adaptive": _prior(),
    "plain": _prior(adaptive=False),
    "joint": _joint("implicit", noise),
    "joint KL": _estimation(),
    "semi": Loss(
        lambda p, critic: p.SemiImplicitELBO({"z": p.GaussianNoise(0.3)}, 3),
        "implicit",
        likely=True,
    ),
    "MMD": _compares(lambda p, critic: p.MMD(p.GaussianKernel(2.0))),
    "energy": _compares(lambda p, critic: p.EnergyDistance()),
    "sliced": _compares(lambda p, critic: p.SlicedWasserstein(20)),
}
# More uses of these losses, for contracts in which noise makes a difference.
WITHOUT_NOISE = {
    "joint without noise": _joint("implicit"),
    "joint, guide with a density": _joint("normal"),
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
# Of programs that count their dims from the right, and draw z and x of shape (20, 2).
TABLE = Table({"z": _RNG.normal(size=(30, 20, 2)), "x": _RNG.normal(size=(30, 20, 2))})
OF_RUNS = {
    "joint KL at once": _estimation(num_particles=3, vectorize_particles=True),
    "joint KL of a table": _estimation(simulations=TABLE, num_particles=7),
}
TRAINS_MODEL = [name for name, loss in LOSSES.items() if loss.trains_model]
HAS_CRITIC = [name for name, loss in LOSSES.items() if loss.has_critic]
COMPARES = [name for name, loss in LOSSES.items() if loss.guide == "empty"]
GUIDED = [name for name, loss in LOSSES.items() if loss.guide != "empty"]
