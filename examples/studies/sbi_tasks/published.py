# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What others reached: mean C2ST over ten observations of Lueckmann et al. 2021.

"Benchmarking simulation-based inference", https://arxiv.org/abs/2101.04653: 0.5 is perfect. SNPE
spends its simulations in ten rounds, for one observation at a time; the others are amortised
(NPE, NRE) or run MCMC at every observation (NLE).
"""

from __future__ import annotations

#: The budgets behind the three numbers.
BUDGETS = (1_000, 10_000, 100_000)
_METHODS = ("NPE", "NRE", "NLE", "SNPE")
_TABLE = """
bernoulli_glm           .863 .678 .559  .899 .812 .751  .740 .605 .545  .855 .614 .525
bernoulli_glm_raw       .900 .765 .607  .915 .834 .777  .870 .939 .951  .906 .658 .607
gaussian_linear         .694 .552 .506  .672 .560 .536  .650 .555 .515  .652 .544 .507
gaussian_linear_uniform .696 .553 .509  .788 .706 .631  .723 .548 .506  .631 .527 .507
gaussian_mixture        .731 .661 .555  .784 .752 .734  .812 .731 .757  .697 .583 .533
lotka_volterra          .999 .997 .981  1.00 .998 .996  .994 .956 .952  .990 .953 .928
sir                     .815 .680 .585  .841 .770 .690  .761 .748 .730  .638 .561 .575
slcp                    .975 .901 .831  .972 .947 .919  .946 .771 .699  .965 .845 .666
slcp_distractors        .982 .970 .863  .980 .968 .953  .987 .961 .905  .978 .931 .778
two_moons               .725 .606 .542  .822 .761 .629  .773 .713 .668  .643 .554 .530
"""


def _read(line: str) -> tuple[str, dict[str, tuple[float, float, float]]]:
    name, *numbers = line.split()
    values = [float(number) for number in numbers]
    groups = [(values[k], values[k + 1], values[k + 2]) for k in range(0, len(values), 3)]
    return name, dict(zip(_METHODS, groups, strict=True))


#: By task, then by method.
PUBLISHED = dict(map(_read, _TABLE.strip().splitlines()))
