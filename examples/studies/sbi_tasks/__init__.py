# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""The ten tasks of the benchmark of simulation-based inference, in NumPy.

Priors, simulators and the layout of the files are those of Lueckmann et al. 2021
(https://arxiv.org/abs/2101.04653, appendix T).
"""

from studies.sbi_tasks.coins import BERNOULLI_GLM, BERNOULLI_GLM_RAW
from studies.sbi_tasks.dynamics import LOTKA_VOLTERRA, SIR
from studies.sbi_tasks.flat import (
    GAUSSIAN_LINEAR,
    GAUSSIAN_LINEAR_UNIFORM,
    GAUSSIAN_MIXTURE,
    TWO_MOONS,
)
from studies.sbi_tasks.published import BUDGETS
from studies.sbi_tasks.slcp import SLCP, SLCP_DISTRACTORS
from studies.sbi_tasks.task import Prior, SbiTask

__all__ = ["BUDGETS", "SBI_TASKS", "Prior", "SbiTask"]

#: By name.
SBI_TASKS = {
    task.name: task
    for task in (
        BERNOULLI_GLM,
        BERNOULLI_GLM_RAW,
        GAUSSIAN_LINEAR,
        GAUSSIAN_LINEAR_UNIFORM,
        GAUSSIAN_MIXTURE,
        LOTKA_VOLTERRA,
        SIR,
        SLCP,
        SLCP_DISTRACTORS,
        TWO_MOONS,
    )
}
