"""``python -m distributed.doctor``: what this machine has, what it lacks, and the one line that mends it.

- `finding`: what one check says, and probes in a process of their own.
- `packages`: Python, packages, FAISS and torchvision wheels, names on the import path, the compiler.
- `machine`: cores, memory, disk, shared memory, GPUs.
- `services`: the cluster's address and token, Weights & Biases.
- `cluster`, `node_probe`: whether the cluster answers, has room, and shares a run's folders; asked on every node.
- `examination`: the list of checks, run in order.
"""
