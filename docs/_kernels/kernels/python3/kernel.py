# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The kernel that runs the pages: Pyro and NumPyro use the same names, so each has its own.

A cell whose first line is ``# Pyro`` or ``# NumPyro`` runs as if the other backend's cells were
not on the page. The page shows such cells as tabs.
"""

import warnings

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

# ArviZ tells the first of its users each day of its next version: that is no output of a page.
warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)


def changed(names, before):
    """The names that a cell has set."""
    return {key: value for key, value in names.items() if before.get(key, names) is not value}


class TwoBackends(IPythonKernel):
    """A Python kernel in which the names of each backend are set aside between its cells."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.kept = {"# Pyro": {}, "# NumPyro": {}}

    async def do_execute(self, code, *args, **kwargs):
        """Run a cell, after those of its backend if it has one."""
        backend = code.partition("\n")[0]
        names = self.shell.user_module.__dict__
        shared = dict(names)
        names.update(self.kept.get(backend, {}))
        try:
            return await super().do_execute(code, *args, **kwargs)
        finally:
            if backend in self.kept:
                self.kept[backend] = changed(names, shared)
                names.clear()
                names.update(shared)
            else:
                for kept in self.kept.values():
                    for key in changed(names, shared):
                        kept.pop(key, None)


if __name__ == "__main__":
    IPKernelApp.launch_instance(kernel_class=TwoBackends)
