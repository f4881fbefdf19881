# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The kernel that runs the pages: Pyro and NumPyro use the same names, so each has its own.

A cell whose first line is ``# Pyro`` or ``# NumPyro`` sees the names of the page's other cells, and
those that earlier cells of its backend have set. The page shows such cells as tabs.
"""

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp


class TwoBackends(IPythonKernel):
    """A Python kernel with one set of names for each backend."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.names = {"# Pyro": {}, "# NumPyro": {}}

    async def do_execute(self, code, *args, **kwargs):
        """Run a cell, after those of its backend if it has one."""
        backend = code.partition("\n")[0]
        if backend not in self.names:
            return await super().do_execute(code, *args, **kwargs)
        current = self.shell.user_module.__dict__
        shared = dict(current)
        current.update(self.names[backend])
        try:
            return await super().do_execute(code, *args, **kwargs)
        finally:
            self.names[backend] = {
                name: value
                for name, value in current.items()
                if name not in shared or shared[name] is not value
            }
            current.clear()
            current.update(shared)


if __name__ == "__main__":
    IPKernelApp.launch_instance(kernel_class=TwoBackends)
