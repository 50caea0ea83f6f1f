"""What a weight is worth: score = f(signals); higher = keep.

One file, one criterion: a function of the file's name. Positional parameters name the signals
that it reads (``weight``, ``grad``, ``grad_sq``, ``grad_sq_running``, ``noise``); keyword-only
ones are its settings. It returns a new tensor of the weight's shape.
"""
