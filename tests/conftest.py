"""What all tests share. Its place here also lets them say `from workloads import Workload`."""
