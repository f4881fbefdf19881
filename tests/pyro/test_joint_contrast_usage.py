# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""JointContrastELBO in Pyro as it is used: plates, SVI, modules, files; and what it refuses."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive
from pyro.nn import PyroModule
from pyro_contrast import (
    Recorder,
    Told,
    affine,
    data,
    guide,
    model,
    param,
    sgd,
    snapshot,
    total,
    unchanged,
)
from torch import nn

from pyro_spread import (
    KL,
    R1,
    Divergence,
    GaussianNoise,
    ImplicitDistribution,
    JointContrastELBO,
    JSPi,
    TotalVariation,
    concat_sites,
)
from pyro_spread.infer._joint_sides import data_plates
from spread_analysis import FalseEvidenceWarning

X = data()


def mlp(inputs=2):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 1))


def density_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(param("m") * x, param("s")))


# --- plates


def nested(x, implicit=False):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 3, dim=-2):
        c = pyro.sample("c", dist.Normal(beta, 1.0))
    with pyro.plate("data", 2, dim=-1), pyro.plate("rows", 3, dim=-2):
        fn = affine(param("m") * x, param("s")) if implicit else dist.Normal(c, 1.0)
        z = pyro.sample("z", fn)
        if not implicit:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_the_plates_of_the_data_are_found():
    assert data_plates(nested, (torch.zeros(3, 2),), {}) == {"data"}
    assert data_plates(lambda x: pyro.sample("x", dist.Normal(0.0, 1.0), obs=x), (X[0],), {}) == {
        *()
    }

    def two(x):
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.deterministic("twice", 2 * x)
            with pyro.plate("more", 4, dim=-2):
                pyro.sample("y", dist.Normal(0.0, 1.0).expand([4, 6]), obs=torch.zeros(4, 6))

    state = torch.get_rng_state()
    assert data_plates(two, (X,), {}) == {"data"}
    assert torch.equal(torch.get_rng_state(), state)


def test_globals_may_stand_in_plates_of_their_own():
    critic = Recorder()
    x = torch.arange(6.0).reshape(3, 2)
    JointContrastELBO(critic).loss_and_grads(nested, lambda x: nested(x, implicit=True), x)
    for values, _, _ in critic.seen:
        assert set(values) == {"x", "z"}
        assert values.batch_shape == (2,)
        assert values["z"].shape == values["x"].shape == (2, 3)
        assert values.arguments["beta"].shape == (2,)
        assert values.arguments["c"].shape == (2, 3, 1)  # of the inner plate alone


def test_subsampled_rows_are_the_same_for_all():
    def subsampled(x, label, fn=None):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", fn(x[rows]) if fn else dist.Normal(0.0, 1.0))
            if fn is None:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def implicit(x, label):
        subsampled(x, label, lambda at: affine(at, 0.01))

    critic, x = Recorder(), torch.arange(20.0)
    JointContrastELBO(critic).loss_and_grads(subsampled, implicit, x, 10 * x)
    guide_side, *others = [values for values, _, _ in critic.seen]
    assert torch.equal(10 * guide_side["x"], guide_side.arguments["label"])
    assert (guide_side["z"] - guide_side["x"]).abs().max() < 0.1
    for side in others:
        assert torch.equal(side.arguments["x"], guide_side["x"])
    told = Told(lambda values, *args: torch.ones(4))
    assert JointContrastELBO(told).loss(subsampled, implicit, x, x) == pytest.approx(20.0)


def test_without_a_plate_there_is_one_pair():
    def single(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(), param("s")), obs=x)

    def single_guide(x):
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        m = param("m")
        pyro.sample("z", ImplicitDistribution(lambda eps: m * x + eps, base, (2,)))

    critic = Recorder()
    JointContrastELBO(critic).loss_and_grads(single, single_guide, X[0])
    assert all(values.batch_shape == () for values, _, _ in critic.seen)
    assert pyro.param("m").grad.any()


# --- SVI, modules, files


@pytest.mark.parametrize("divergence", [None, JSPi(0.5), KL()])
def test_two_players_and_evaluation(divergence):
    # Without what bends, the logits' sum and a shift of all pairs would be lost on the norm.
    norm = nn.BatchNorm1d(3)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), norm, nn.Tanh(), nn.Linear(3, 1))
    loss = JointContrastELBO(concat_sites(net, "x", "z"), divergence, regularizer=R1(0.1))
    svi = SVI(model, loss.register(model, guide), sgd(steps=2), loss)
    svi.evaluate_loss(X)
    for i in (1, 2):
        before = {name: p.detach().clone() for name, p in pyro.get_param_store().items()}
        mean = norm.running_mean.clone()
        svi.evaluate_loss(X)
        loss.logits(model, guide, X)
        assert all(torch.equal(p, before[name]) for name, p in pyro.get_param_store().items())
        assert torch.equal(norm.running_mean, mean)
        svi.step(X)
        moved = {n for n, p in pyro.get_param_store().items() if not torch.equal(p, before[n])}
        assert {n for n in moved if "$$$" not in n} == (set() if i == 1 else {"m", "s", "mu"})
        assert any("$$$" in n for n in moved)
        assert not torch.equal(norm.running_mean, mean)
    assert torch.equal(X, data())


@pytest.mark.parametrize("lazy", [False, True])
def test_params_survive_a_file(tmp_path, lazy):
    def steps(critic, count):
        loss = JointContrastELBO(critic)
        loss.loss(model, guide, X)
        pyro.set_rng_seed(1)
        svi = SVI(model, guide, sgd(), loss)
        return [svi.step(X) for _ in range(count)]

    first, second = (concat_sites(nn.LazyLinear(1) if lazy else mlp(), "x", "z") for _ in range(2))
    steps(first, 2)
    pyro.get_param_store().save(tmp_path / "params")
    wanted = steps(first, 2)
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "params")
    assert steps(second, 2) == pytest.approx(wanted, rel=1e-5)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(1, 1)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(self.decoder(z[:, None])[:, 0]), obs=x)


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 1)

    def forward(self, x):
        def fn(eps):
            return self.encoder(torch.stack([x, eps], -1))[..., 0]

        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(fn, dist.Normal(torch.zeros(()), 1.0), ()))


def test_the_module_holds_every_param():
    module = JointContrastELBO(concat_sites(mlp(), "x", "z"), JSPi(0.5))(Model(), Guide())
    names = {name for name, _ in module.named_parameters()}
    assert {"model.decoder.weight", "guide.encoder.bias", "discriminator.net.0.weight"} < names
    module(X).backward()
    assert all(p.grad is not None for p in module.parameters())
    with torch.no_grad():
        assert not module(X).requires_grad
    assert not list(pyro.get_param_store())


def test_npe_trains_and_predicts():
    pyro.set_rng_seed(0)
    optim = pyro.optim.Adam({"lr": 0.02})
    svi = SVI(model, density_guide, optim, JointContrastELBO(divergence=KL()))
    x = torch.zeros(500)
    for _ in range(150):
        svi.step(x)
    assert set(pyro.get_param_store()) == {"m", "s", "mu"}  # no critic's
    assert param("mu").item() == pytest.approx(0.3)  # the simulator is not trained
    # The posterior of z given x has the slope .8; with no intercept, .3 rests on the sd.
    assert pyro.param("m").item() == pytest.approx(0.83, abs=0.04)
    assert pyro.param("s").item() == pytest.approx(0.452, abs=0.03)
    draws = Predictive(model, guide=density_guide, num_samples=50)(x[:6])
    assert draws["z"].shape == (50, 6)


def test_a_critic_that_sees_no_overlap_warns():
    def far(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", affine(param("m") + 50, 0.1))

    def steps(guide, critic):
        pyro.clear_param_store()
        svi = SVI(model, guide, sgd(0.0, 0.0), JointContrastELBO(Told(critic)))
        for _ in range(60):
            svi.step(X)

    with pytest.warns(FalseEvidenceWarning):
        steps(far, lambda values, *args: values["z"] - 25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(guide, total)


# --- errors


class OneWay(Divergence):
    def data_term(self, log_ratio):
        return log_ratio

    def model_term(self, log_ratio):
        return -log_ratio

    def generator_loss(self, log_ratio_q):
        return -log_ratio_q


ARGUMENTS = {
    "critic": ({"discriminator": lambda v: v["z"]}, TypeError, "discriminator must be a torch.nn"),
    "dict": ({"discriminator": {"z": Told(total)}}, TypeError, "discriminator must be a torch.nn"),
    "pyro module": ({"discriminator": PyroModule()}, TypeError, "is a PyroModule"),
    "no critic": (
        {"discriminator": None},
        ValueError,
        r"JointContrastELBO with ReverseKL needs a discriminator: only KL\(\)",
    ),
    "no critic for JSPi": (
        {"discriminator": None, "divergence": JSPi(0.5)},
        ValueError,
        "JointContrastELBO with JSPi needs a discriminator",
    ),
    "divergence": ({"divergence": 0.5}, TypeError, r"divergence must be a Divergence .* got 0\.5"),
    "divergence class": ({"divergence": KL}, TypeError, "divergence must be a Divergence such as"),
    "no gradient": ({"divergence": TotalVariation()}, NotImplementedError, "TotalVariation"),
    "particles": ({"num_particles": 0}, ValueError, "num_particles must be a positive integer"),
    "half": ({"num_particles": 1.0}, ValueError, "num_particles must be a positive integer"),
    "regularizer": ({"regularizer": 1.0}, TypeError, "regularizer must be a Regularizer such as"),
    "bare kernel": ({"noise": GaussianNoise(0.1)}, TypeError, "noise"),
}


@pytest.mark.parametrize("mistake", ARGUMENTS)
def test_arguments(mistake):
    wrong, error, message = ARGUMENTS[mistake]
    with pytest.raises(error, match=message):
        JointContrastELBO(**{"discriminator": Told(total), **wrong})


def with_global(x, fn=None):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0) if fn is None else fn())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(beta, 1.0) if fn is None else affine(x, param("s")))
        if fn is None:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def in_plate(fn):
    def run(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn(x))

    return run


def no_data(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(param("mu"), 1.0))


def learned_coin(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(param("mu")))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def two_sites(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(z, 1.0), obs=x)
        pyro.sample("b", dist.Normal(z, 1.0), obs=x)


LEARNED = torch.tensor(0.3, requires_grad=True)
NPE = {"net": None, "divergence": KL()}
PROGRAMS = {
    "no latent": (
        model,
        lambda x: None,
        {},
        ValueError,
        r"the guide has no latent site of the model in the plates.*sites are \[\].*AdversarialDiv",
    ),
    "no latent but globals": (
        with_global,
        lambda x: pyro.sample("beta", dist.Normal(param("m"), 1.0)),
        {},
        ValueError,
        r"no latent site of the model .*its sites are \['beta'\]",
    ),
    "no latent in npe": (
        model,
        lambda x: pyro.sample("w", dist.Normal(param("m"), 1.0)),
        NPE,
        ValueError,
        r"no latent site of the model .*its sites are \['w'\]",
    ),
    "implicit global": (
        with_global,
        lambda x: with_global(x, lambda: affine(param("m"), 1.0)),
        {},
        ValueError,
        "guide site 'beta' is implicit but stands outside of the plates.*PriorContrastELBO",
    ),
    "discrete global": (
        with_global,
        lambda x: with_global(x, lambda: dist.Bernoulli(param("m"))),
        {},
        NotImplementedError,
        "latent site 'beta': draws of Bernoulli are not reparametrised",
    ),
    "globals beside JSPi": (
        with_global,
        lambda x: with_global(x, lambda: dist.Normal(param("m"), 1.0)),
        {"divergence": JSPi(0.5)},
        ValueError,
        r"guide site 'beta' stands outside .* only ReverseKL\(\) can add.*not JSPi",
    ),
    "implicit npe": (model, guide, NPE, ValueError, r"site 'z' has no density, so KL\(\) needs a"),
    "subsampled npe": (
        subsampled,
        density_guide,
        NPE,
        ValueError,
        r"site 'x': the model simulates values of shape \(4,\), but its data have \(6,\)",
    ),
    "one argument for two": (
        two_sites,
        density_guide,
        NPE,
        ValueError,
        "sites 'a' and 'b' would both take their data from the model argument 'x'",
    ),
    "data": (
        model,
        density_guide,
        {**NPE, "data": {"x": "y"}},
        ValueError,
        "site 'x': data= says that the model argument 'y' carries it",
    ),
    "no data": (no_data, guide, {}, ValueError, "observes no site, so there are no data"),
    "no data for npe": (no_data, density_guide, NPE, ValueError, "observes no site"),
    "learned coin": (
        learned_coin,
        guide,
        {},
        NotImplementedError,
        "latent site 'z': draws of Bernoulli .* parameters are being learned",
    ),
    "learned coin in the guide": (
        model,
        in_plate(lambda x: dist.Bernoulli(param("m").expand(len(x)))),
        {},
        NotImplementedError,
        "latent site 'z': draws of Bernoulli .* parameters are being learned",
    ),
    "masked": (
        poutine.mask(model, mask=torch.zeros(6, dtype=torch.bool)),
        guide,
        {},
        ValueError,
        "every datum is masked out",
    ),
    "noise at a latent": (
        model,
        guide,
        {"noise": {"z": GaussianNoise(0.1)}},
        ValueError,
        "'z'.*'x'",
    ),
    "learned noise": (
        model,
        guide,
        {"noise": {"x": GaussianNoise(LEARNED)}},
        ValueError,
        "site 'x': the noise kernel has learnable parameters",
    ),
    "one way": (
        model,
        guide,
        {"divergence": OneWay()},
        NotImplementedError,
        "OneWay does not say which divergence it is with its arguments exchanged.*`reversed`",
    ),
    "unknown name": (
        model,
        guide,
        {"net": concat_sites(nn.Linear(1, 1), "label")},
        ValueError,
        "'label' is neither a site",
    ),
    "logits": (
        model,
        guide,
        {"net": Told(lambda values, x: values["z"][:, None])},
        ValueError,
        r"returned logits of shape \(6, 1\)",
    ),
}


@pytest.mark.parametrize("mistake", PROGRAMS)
def test_programs(mistake):
    program, guide, options, error, message = PROGRAMS[mistake]
    options = dict(options)
    loss = JointContrastELBO(options.pop("net", Told(total)), **options)
    pyro.param("mine", torch.tensor(1.0)).sum().backward()
    before = snapshot()
    for method in (SVI(program, guide, sgd(), loss).step, loss.loss):
        args = (X,) if method != loss.loss else (program, guide, X)
        if mistake == "one way" and method == loss.loss:
            continue  # nothing is reversed where nothing is learned
        with pytest.raises(error, match=message):
            method(*args)
        assert unchanged(before)
        if loss.discriminator is not None:
            assert all(p.grad is None for p in loss.discriminator.parameters())


def test_there_are_no_logits_without_a_critic():
    with pytest.raises(ValueError, match=r"logits\(\) needs a discriminator"):
        JointContrastELBO(divergence=KL()).logits(model, density_guide, X)


def test_a_second_critic_under_the_same_name_is_refused():
    JointContrastELBO(Told(total)).loss_and_grads(model, guide, X)
    before = snapshot()
    with pytest.raises(ValueError, match="another discriminator under the name 'discriminator'"):
        JointContrastELBO(Told(total)).loss_and_grads(model, guide, X)
    assert unchanged(before)


# --- what one call says of the next


def hierarchical(x=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(X)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def over_both(x=None):
    mu = pyro.sample("mu", dist.Normal(param("m"), 1.0))
    with pyro.plate("data", len(X)):
        pyro.sample("z", affine(mu * torch.ones(len(X)), param("s")))


def test_a_call_without_data_is_forgotten():
    loss = JointContrastELBO(concat_sites(mlp(3), "x", "z", "mu"))
    with pytest.raises(ValueError, match="observes no site"):
        loss.loss(hierarchical, over_both)
    loss.loss(hierarchical, over_both, X)


def test_methods_of_different_objects_are_different_models():
    class Study:
        def __init__(self, run):
            self.run = run

        def model(self, x):
            return self.run(x)

    one, other = Study(model), Study(nested)
    assert data_plates(one.model, (X,), {}) == {"data"}
    assert data_plates(other.model, (torch.zeros(3, 2),), {}) == {"data"}
    assert data_plates(one.model, (X,), {}) == {"data"}


# --- guide sites that are no latents of the model, and Deltas


def test_auxiliary_sites_of_the_guide_may_be_none_of_the_model():
    def through_noise(x):
        with pyro.plate("data", len(x)):
            eps = pyro.sample("eps", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(param("m") * x + param("s") * eps))

    pyro.set_rng_seed(0)
    assert JointContrastELBO(concat_sites(mlp(), "x", "z")).loss(model, through_noise, X) != 0


def test_a_global_delta_of_noise_is_refused():
    def tempting(x):
        eps = pyro.sample("eps", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        mu = pyro.sample("mu", dist.Delta(param("m") + param("s") * eps))
        with pyro.plate("data", len(X)):
            pyro.sample("z", affine(mu * torch.ones(len(X)), 1.0))

    loss = JointContrastELBO(concat_sites(mlp(3), "x", "z", "mu"))
    with pytest.raises(ValueError, match="'mu' is a Delta at a function of random noise"):
        loss.loss(hierarchical, tempting, X)


def test_a_delta_is_no_density_for_posterior_estimation():
    def point(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(param("m") * x))

    with pytest.raises(ValueError, match="'z' has no density"):
        JointContrastELBO(divergence=KL()).loss(model, point, X)


def test_posterior_estimation_counts_data_and_not_elements():
    def known(x):
        mu = pyro.sample("mu", dist.Uniform(-100.0, 100.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(mu - 100.0, mu + 100.0))

    def rows(x):
        with pyro.plate("rows", len(x), dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("columns", 3, dim=-1):
                b = pyro.sample("b", dist.Normal(a, 1.0))
                pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def rows_guide(x):
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("a", dist.Uniform(-100.0, 100.0))
            with pyro.plate("columns", 3, dim=-1):
                pyro.sample("b", dist.Uniform(-100.0, 100.0))

    log_width = torch.tensor(200.0).log()
    loss = JointContrastELBO(divergence=KL())
    assert loss.loss(hierarchical, known, X) == pytest.approx((1 + len(X)) * log_width)
    assert loss.loss(rows, rows_guide, torch.zeros(4, 3)) == pytest.approx(4 * log_width)
