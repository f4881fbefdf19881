# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every kernel, divergence and loss is in both backends, in the tests' lists and on a page."""

import sys
from types import SimpleNamespace

import numpy as np
import what_is_missing

import numpyro_spread
import pyro_spread


def write_in(monkeypatch, module, cls):
    """Make a class one that a module of the project defines, until the test ends."""
    monkeypatch.setattr(cls, "__module__", module)
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{cls.__name__: cls}))


def test_nothing_is_missing():
    assert what_is_missing.missing() == []


def test_what_no_module_holds_is_not_looked_at(monkeypatch):
    class OfADoctest(pyro_spread.LaplaceNoise):
        pass

    monkeypatch.setattr(OfADoctest, "__module__", "pyro_spread.noise.base")
    assert what_is_missing.missing() == []


def test_what_is_missing_is_named(monkeypatch):
    class HalfNoise(pyro_spread.LaplaceNoise):
        pass

    class HalfKernel(pyro_spread.LaplaceKernel):
        pass

    class OwnLoss(numpyro_spread.EnergyDistance):
        pass

    write_in(monkeypatch, "pyro_spread.noise.half", HalfNoise)
    write_in(monkeypatch, "spread_core.math.half", HalfKernel)
    write_in(monkeypatch, "numpyro_spread.infer.own", OwnLoss)
    said = what_is_missing.missing()
    assert "numpyro_spread has no kernel HalfNoise: mirror it." in said
    assert "pyro_spread.HalfNoise is not exported: add it to __all__." in said
    assert "HalfNoise of pyro_spread is not in KERNELS of tests/programs/every.py." in said
    assert "HalfNoise is in no table of docs/kernels.md." in said
    assert "pyro_spread.HalfNoise has no docstring." in said
    assert "numpyro_spread.HalfKernel is not exported: add it to __all__." in said
    assert "HalfKernel of pyro_spread is not in MMD_KERNELS of tests/programs/every.py." in said
    assert "HalfKernel is in no table of docs/choose.md." in said
    assert "pyro_spread has no loss OwnLoss: mirror it." in said
    assert "OwnLoss is in no table of docs/choose.md." in said


def test_a_loss_has_to_say_what_it_reports(monkeypatch):
    class SilentLoss(numpyro_spread.infer._registration.Loss):
        """Nothing."""

        def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
            return np.zeros(())

    write_in(monkeypatch, "numpyro_spread.infer.silent", SilentLoss)
    said = what_is_missing.missing()
    assert "numpyro_spread.SilentLoss does not say what it reports: write describe()." in said
