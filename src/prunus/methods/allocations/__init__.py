"""How much each group gives: ``(units, cost, target, limits) -> counts``.

One file, one allocation: a function of the file's name. ``units`` holds the unit scores of
each group, ``cost(counts)`` is the exact sparsity of a choice, ``target`` the sparsity to
reach, ``limits`` what must and what can stay. It returns how many units each group keeps.
"""
