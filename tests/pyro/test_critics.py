# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Ready-made critics: shapes, gradients, closed forms and spectral norms."""

import copy

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from pyro_spread.ratio.critics import ConvCritic, MLPCritic, QuadraticCritic, SeparableCritic

# name -> (constructor, number of features)
NETS = {
    "mlp": (MLPCritic, 3),
    "mlp-input-dim": (lambda: MLPCritic(input_dim=3), 3),
    "mlp-linear": (lambda: MLPCritic(hidden=()), 3),
    "mlp-module": (lambda: MLPCritic(activation=nn.PReLU()), 3),
    "mlp-spectral": (lambda: MLPCritic(spectral_norm=True), 3),
    "quadratic": (QuadraticCritic, 3),
    "quadratic-input-dim": (lambda: QuadraticCritic(input_dim=3), 3),
    "conv-digits": (lambda: ConvCritic((8, 8)), 64),
    "conv-mnist": (lambda: ConvCritic((28, 28)), 784),
    "conv-colour": (lambda: ConvCritic((3, 9, 8), channels=(4, 5, 6)), 216),
    "conv-spectral": (lambda: ConvCritic((8, 8), spectral_norm=True), 64),
}


@pytest.mark.parametrize("batch_shape", [(5,), (2, 5), (3, 1, 4), (0,), ()])
@pytest.mark.parametrize("name", NETS)
def test_one_logit_for_every_batch_element(name, batch_shape):
    make, features = NETS[name]
    critic = make()
    assert critic(torch.randn(*batch_shape, features)).shape == (*batch_shape, 1)


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_and_the_input_get_a_finite_gradient(name):
    make, features = NETS[name]
    critic = make()
    x = torch.randn(6, features, requires_grad=True)
    critic(x.detach())
    # From zero, the quadratic critic has no gradient in its input.
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    critic(x).square().sum().backward()
    for gradient in (x.grad, *(p.grad for p in critic.parameters())):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", NETS)
def test_logits_of_data_do_not_depend_on_each_other(name):
    make, features = NETS[name]
    critic = make().eval()
    x = torch.randn(4, features)
    torch.testing.assert_close(critic(x)[1], critic(x[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "quadratic", "mlp-spectral"])
def test_sizes_come_from_the_first_input(name):
    make, features = NETS[name]
    critic = make()
    assert any(isinstance(p, UninitializedParameter) for p in critic.parameters())
    critic(torch.randn(2, features))
    assert not any(isinstance(p, UninitializedParameter) for p in critic.parameters())
    twin = copy.deepcopy(critic).eval()
    x = torch.randn(2, features)
    torch.testing.assert_close(twin(x), critic.eval()(x))


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_a_state_dict_loads_before_the_first_call(spectral_norm):
    trained = MLPCritic(spectral_norm=spectral_norm, input_dim=3).eval()
    fresh = MLPCritic(spectral_norm=spectral_norm, input_dim=3).eval()
    fresh.load_state_dict(trained.state_dict())
    x = torch.randn(2, 3)
    torch.testing.assert_close(fresh(x), trained(x))


def test_a_state_dict_of_the_quadratic_critic_loads_before_the_first_call():
    trained, fresh = QuadraticCritic(input_dim=3), QuadraticCritic()
    nn.init.normal_(trained.matrix)
    fresh.load_state_dict(trained.state_dict())
    x = torch.randn(2, 3)
    torch.testing.assert_close(fresh(x), trained(x))


def test_the_default_activation_is_leaky():
    critic = MLPCritic(hidden=(1,), input_dim=1)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.fill_(1.0)
    # 1 + leaky(x + 1)
    logits = critic(torch.tensor([[2.0], [-2.0]])).squeeze(-1)
    torch.testing.assert_close(logits, torch.tensor([4.0, 0.8]))


@pytest.mark.usefixtures("double")
def test_the_quadratic_critic_holds_the_log_ratio_of_two_gaussians():
    factors = torch.randn(2, 3, 3)
    covariances = factors @ factors.mT + torch.eye(3)
    (loc_p, loc_q), (precision_p, precision_q) = torch.randn(2, 3), torch.linalg.inv(covariances)
    p = dist.MultivariateNormal(loc_p, covariances[0])
    q = dist.MultivariateNormal(loc_q, covariances[1])
    x = torch.randn(20, 3)
    exact = p.log_prob(x) - q.log_prob(x)

    critic = QuadraticCritic(input_dim=3)
    assert not critic(x).any()  # zero at the start
    with torch.no_grad():
        critic.matrix.copy_(0.5 * (precision_q - precision_p))
        critic.vector.copy_(precision_p @ loc_p - precision_q @ loc_q)
        critic.constant.copy_(exact[0] - critic(x)[0])
    torch.testing.assert_close(critic(x).squeeze(-1), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("double")
def test_the_quadratic_critic_learns_the_log_ratio_of_two_gaussians():
    p, q = dist.Normal(0.0, 1.0), dist.Normal(1.0, 2.0)
    x = torch.linspace(-8, 8, 401)[:, None]
    weights = p.log_prob(x).exp(), q.log_prob(x).exp()
    critic = QuadraticCritic(input_dim=1)
    optimiser = torch.optim.LBFGS(critic.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        logits = critic(x)
        value = (
            weights[0] * nn.functional.softplus(-logits)
            + weights[1] * nn.functional.softplus(logits)
        ).mean()
        value.backward()
        return value

    optimiser.step(loss)
    inner = x[150:251]
    error = critic(inner) - (p.log_prob(inner) - q.log_prob(inner))
    assert error.abs().max() < 1e-2


def test_the_separable_critic_is_what_it_says():
    critic = SeparableCritic("x", "z", hidden=(), features=2, add_half_square=True)
    values = {"x": torch.tensor([[1.0, 2.0], [0.5, -1.0]]), "z": torch.tensor([[3.0], [-2.0]])}
    critic(values)
    nets = (critic.left_embedding, critic.right_embedding, critic.left_head, critic.right_head)
    weights = ([[1.0, 0.0], [2.0, 1.0]], [[1.0], [-1.0]], [[0.5, 0.5]], [[2.0]])
    biases = ([0.0, 1.0], [0.0, 2.0], [0.25], [-1.0])
    with torch.no_grad():
        for net, weight, bias in zip(nets, weights, biases, strict=True):
            net.layers[0].weight.copy_(torch.tensor(weight))
            net.layers[0].bias.copy_(torch.tensor(bias))
    # theta = (1, 5), (.5, 1); s = (3, -1), (-2, 4); t_x = 1.75, 0; t_z = 5, -5; half = 4.5, 2
    torch.testing.assert_close(critic(values), torch.tensor([-2 + 6.75 + 4.5, 3 - 5 + 2.0]))
    critic.add_half_square = False
    torch.testing.assert_close(critic(values), torch.tensor([-2 + 6.75, 3 - 5.0]))


def test_the_separable_critic_flattens_and_finds_model_arguments():
    critic = SeparableCritic("x", "z", hidden=(8,), features=4)
    x, z = torch.randn(5, 2, 3), torch.randn(5, 2)
    logits = critic({"x": x, "z": z})
    assert logits.shape == (5,)
    torch.testing.assert_close(critic({"z": z}, x, x=x), logits)
    torch.testing.assert_close(critic({"z": z, "x": x.flatten(1)}), logits)


def test_the_separable_critic_trains_all_four_nets():
    critic = SeparableCritic("x", "z", hidden=(8,), features=4)
    critic({"x": torch.randn(5, 3), "z": torch.randn(5, 2)}).sum().backward()
    gradients = [p.grad for p in critic.parameters()]
    assert len(gradients) == 16
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)


def _weights(critic):
    layers = [m for m in critic.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return [layer.weight.detach().flatten(1) for layer in layers]


@pytest.mark.parametrize("name", ["mlp-spectral", "conv-spectral"])
def test_the_largest_singular_value_of_every_layer_is_one(name):
    make, features = NETS[name]
    critic = make()
    x = torch.randn(4, features)
    for _ in range(150):  # random weights have almost no gap between singular values
        critic(x)
    weights = _weights(critic.eval())
    assert len(weights) == 3
    for weight in weights:
        assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1.0, rel=0.01)


def test_no_layer_is_normalised_unasked():
    critic = MLPCritic(input_dim=3)
    norms = [torch.linalg.matrix_norm(weight, 2).item() for weight in _weights(critic)]
    assert all(abs(norm - 1) > 0.01 for norm in norms)


BAD = [
    (lambda: MLPCritic(hidden=64), ValueError, r"MLPCritic: hidden must be a tuple.*got 64\."),
    (lambda: MLPCritic(hidden=(64, 0)), ValueError, r"hidden must be.*got \(64, 0\)"),
    (lambda: MLPCritic(input_dim=0), ValueError, "input_dim must be a positive integer, got 0"),
    (lambda: MLPCritic(activation=nn.ReLU), TypeError, r"activation must be a function.*ReLU\(\)"),
    (lambda: MLPCritic(activation="relu"), TypeError, "activation must be a function.*got 'relu'"),
    (lambda: QuadraticCritic(input_dim=-1), ValueError, "QuadraticCritic: input_dim .* got -1"),
    (lambda: ConvCritic((64,)), ValueError, r"image_shape must be \(H, W\) or .*got \(64,\)"),
    (lambda: ConvCritic((8, -8)), ValueError, r"image_shape must be .*got \(8, -8\)"),
    (lambda: ConvCritic((8, 8), channels=64), ValueError, r"channels must be a tuple.*got 64\."),
    (lambda: ConvCritic((8, 8), channels=(8,) * 4), ValueError, r"halve the image 4 times.*\(8, 8"),
    (lambda: SeparableCritic("x", "z", hidden=3), ValueError, "SeparableCritic: hidden .* got 3"),
    (
        lambda: SeparableCritic("x", "z", features=0),
        ValueError,
        "features must be a positive integer, got 0",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_arguments_are_refused_where_they_are_given(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_features_that_are_no_image_name_both_shapes():
    message = r"shape \(5, 63\).*\(1, 8, 8\).*last dimension must be 64"
    with pytest.raises(ValueError, match=message):
        ConvCritic((8, 8))(torch.zeros(5, 63))
    with pytest.raises(ValueError, match=r"shape \(5, 8, 8\)"):
        ConvCritic((8, 8))(torch.zeros(5, 8, 8))


@pytest.mark.parametrize("critic", [MLPCritic, QuadraticCritic])
def test_other_features_than_promised_are_an_error(critic):
    with pytest.raises(ValueError, match=r"features of shape \(5, 4\).*input_dim=3"):
        critic(input_dim=3)(torch.zeros(5, 4))


def test_an_unknown_name_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="'w'"):
        SeparableCritic("x", "w")({"x": torch.zeros(5, 2), "z": torch.zeros(5, 2)})
