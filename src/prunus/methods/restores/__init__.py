"""What happens to weights after a cut: ``(state, masks, memory) -> state``.

One file, one restore: a function of the file's name. ``state`` holds parameters, buffers and
optimizer state; ``memory`` the earlier ones that it may return to. One whose file declares
``RELEASES`` lets removed weights train until the next cut (``methods/traits.py``).
"""
