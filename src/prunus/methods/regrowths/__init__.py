"""Which removed weights come back while others go: score = f(signals); higher = grow.

One file, one regrowth: a function of the file's name, with the signature of a criterion. Between
two optimizer steps a part of what is left of each group is dropped, the smallest first, and as many
removed ones grow from zero.
"""
