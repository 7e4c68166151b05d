"""``python -m distributed.doctor``: what this machine has, what it lacks, and the one line that mends it.

Each module holds the checks of one subject; :mod:`distributed.doctor.examination` lists them and runs them in order.
"""
