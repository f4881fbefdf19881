# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What turns the logit of a critic into a normalised density."""

from __future__ import annotations

from array_api_compat import array_namespace

from spread_core.math._arrays import Array


def log_normaliser(logits: Array) -> Array:
    r"""
    Estimate :math:`\log E_c[e^T]` from above, from the logits of draws of the contrast c.

    One half of the draws gives an estimate :math:`\log a`, the other the mean of
    :math:`e^T / a + \log a - 1`, which is at least :math:`\log E_c[e^T]` in expectation, whatever a
    is (Nguyen, Wainwright and Jordan, https://arxiv.org/abs/0809.0853). Then
    :math:`c \, e^T` over it is on average no more than a normalised density, so that
    :math:`E_q[T + \log c]` less it is at most :math:`E_q[\log q]`.

    :param logits: of shape draws + batch, at least two draws.
    :return: of shape batch, in nats.

    >>> import numpy as np
    >>> log_normaliser(np.full((4, 1), 2.0))
    array([2.])
    """
    xp = array_namespace(logits)
    half = logits.shape[0] // 2
    log_a = xp.max(logits[:half], axis=0)
    log_a = log_a + xp.log(xp.mean(xp.exp(logits[:half] - log_a), axis=0))
    return xp.mean(xp.exp(logits[half:] - log_a), axis=0) + log_a - 1
