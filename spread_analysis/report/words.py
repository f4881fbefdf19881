# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the reported value of a loss means, and what its critic's logits compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spread_analysis.critic import CriticReport, critic_report
from spread_core.loss_words import LossWords
from spread_core.validation import FloatArray, as_host

# Attributes of losses that are no settings of theirs, or are shown elsewhere.
_UNTOLD = {
    "discriminator",
    "head",
    "ignore_jit_warnings",
    "max_plate_nesting",
    "multi_sample_guide",
    "name",
    "retain_graph",
    "steps_done",
    "strict_enumeration_warning",
    "tail_adaptive_beta",
    "vectorize_particles_fn",
}


def describe(loss: Any) -> LossWords:
    """
    How to speak of a loss: as it says itself by its method ``describe``, or by its class.

    :param loss: the loss object, of this library, of your own or of Pyro or NumPyro.
    """
    if hasattr(loss, "describe"):
        words: LossWords = loss.describe()
        return words
    is_stock = type(loss).__module__.split(".")[0] in ("pyro", "numpyro")
    return LossWords.of_class(type(loss), is_sum=is_stock)


@dataclass(frozen=True)
class CriticLogits:
    """
    A critic's logits for data and model, flat, with weights or None.

    :param data: of shape (num_data,); of the guide's draws where a guide is judged.
    :param model: of shape (num_model,).
    :param data_weights: of shape (num_data,), or None.
    :param model_weights: of shape (num_model,), or None.
    """

    data: FloatArray
    model: FloatArray
    data_weights: FloatArray | None = None
    model_weights: FloatArray | None = None

    @classmethod
    def of(cls, logits: Any) -> CriticLogits:
        """Convert the named tuple that ``loss.logits`` of either backend returns."""
        data, model = as_host(logits.data), as_host(logits.model)
        weights = [
            None if weight is None else np.broadcast_to(as_host(weight), side.shape).ravel()
            for weight, side in ((logits.data_weights, data), (logits.model_weights, model))
        ]
        return cls(data.ravel(), model.ravel(), *weights)

    def check(self, words: LossWords) -> CriticReport | None:
        """
        Check the critic's calibration; None if it is no classifier, or its logits are not finite.

        :param words: about the loss.
        """
        if not words.is_classifier or self.num_not_finite:
            return None
        return critic_report(
            self.data, self.model, words.pi, 10, self.data_weights, self.model_weights
        )

    @property
    def num_not_finite(self) -> int:
        """How many logits are NaN or infinite."""
        return int((~np.isfinite(self.data)).sum() + (~np.isfinite(self.model)).sum())


def figures_of(
    words: LossWords, value: float, logits: Mapping[str, CriticLogits]
) -> dict[str, float]:
    r"""
    The numbers to watch during training.

    :param words: about the loss.
    :param value: what it reports.
    :param logits: critics' logits by critic; the name of a single one is empty.
    :return: ``loss``; ``divergence``, the same, where the loss is one; and for every critic that
        is a classifier ``critic_accuracy``, ``critic_divergence`` (its own estimate of
        :math:`JS_\pi` in nats, H(pi) less its cross-entropy), ``critic_saturated`` (share of
        logits of at least 10 in size) and ``log_ratio_gap`` (how many nats the mean log-ratio
        falls from one side to the other), with "/site" behind where there is one critic per site.
        All are NaN where logits are.
    """
    numbers = {"loss": value}
    if words.is_divergence:
        numbers["divergence"] = value
    if not words.is_classifier:
        return numbers
    for name, both in logits.items():
        ending = f"/{name}" if name else ""
        found = dict.fromkeys(("accuracy", "divergence", "saturated"), np.nan)
        gap = np.nan
        if (checked := both.check(words)) is not None:
            found = {key: float(getattr(checked, key)) for key in found}
            data_mean = np.average(both.data, weights=both.data_weights)
            gap = float(data_mean - np.average(both.model, weights=both.model_weights))
        numbers |= {f"critic_{key}{ending}": number for key, number in found.items()}
        numbers[f"log_ratio_gap{ending}"] = gap
    return numbers


def describe_settings(loss: Any) -> dict[str, str]:
    """
    The arguments of a loss, as text by name of the argument.

    :param loss: the loss object.
    """
    settings = {"loss": type(loss).__name__}
    for name, value in vars(loss).items():
        if name.startswith("_") or name in _UNTOLD or value is None:
            continue
        if isinstance(value, Mapping):
            if not value:
                continue
            settings[name] = ", ".join(f"{key}: {shorten(item)}" for key, item in value.items())
        elif name in ("elbo", "regularizer"):
            settings[name] = type(value).__name__
        else:
            settings[name] = shorten(value)
    return settings


def shorten(value: Any, limit: int = 160) -> str:
    """The repr of a setting, without what changes from run to run, and not too long."""
    if callable(value) and hasattr(value, "__qualname__"):
        return f"function {value.__qualname__}"
    text = str(value) if isinstance(value, str) else repr(value)
    if " object at 0x" in text:
        inside = {k: v for k, v in getattr(value, "__dict__", {}).items() if k[:1] != "_"}
        told = ", ".join(f"{key}={item!r}" for key, item in inside.items())
        text = f"{type(value).__name__}({told})" if " object at 0x" not in told else ""
        text = text or type(value).__name__
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def number(value: float, digits: int = 4) -> str:
    """A number as the page shows it; NaN and infinity are shown as such."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}g}".replace("-", "−")
