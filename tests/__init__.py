"""Tests, in the folders of what they test."""

import os

# Files run side by side (pyproject.toml): with several threads each they would fight for the cores. Set before torch is
# imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
