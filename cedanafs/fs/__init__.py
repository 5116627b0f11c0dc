"""The filesystem: names, handles and the FUSE adapter over checkpoints."""
