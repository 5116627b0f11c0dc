"""What all tests share. Its place here also lets them say `from workloads import Workload`."""

from hypothesis import settings

# Two slow cores are no finding: what takes too long is for the bench to say.
settings.register_profile("cedanafs", deadline=None)
settings.load_profile("cedanafs")
