"""The second listener: what an operator, a balancer or a monitor asks. It reads the snapshot and nothing else."""
