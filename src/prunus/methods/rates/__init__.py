"""Learning-rate plans: ``(progress, dense) -> factor`` of the optimizer's own rate.

One file, one plan: a function of the file's name. ``progress`` runs from 0 to 1 over one
training phase; ``dense`` is the plan of round 0, a function of its progress.
"""
