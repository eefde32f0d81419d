"""The tests in this folder run Triton's kernels in its interpreter on the CPU; tests/gpu runs them for real.

Triton reads the variable when a kernel is defined, hence here, before any test module is imported.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
