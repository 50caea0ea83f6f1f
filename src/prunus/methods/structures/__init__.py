"""The shape of what is removed: ``(layers, shapes) -> groups``.

One file, one structure: a function of the file's name. ``layers`` are the weights in scope
(``layout.py``), ``shapes`` the shapes of all parameters by name.
"""
