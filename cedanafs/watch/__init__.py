"""For who looks on: the figures of a mount, Prometheus metrics of it, events for programs."""
