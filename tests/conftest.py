"""What all tests share. Its place here also lets them say `from workloads import Workload`."""

import os

from hypothesis import settings

# Two slow cores are no finding: what takes too long is for the bench to say.
# CI repeats the same examples; everywhere else each run looks for new ones.
settings.register_profile("cedanafs", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cedanafs")
