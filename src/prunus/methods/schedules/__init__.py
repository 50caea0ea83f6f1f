"""How sparsity grows: ``(progress, start, target) -> sparsity``, progress from 0 to 1.

One file, one schedule: a function of the file's name, stateless, ``start`` at 0 and
``target`` at 1, never falling. Steps and epochs are not its business (``duration.py``).
"""
