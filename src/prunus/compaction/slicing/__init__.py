"""Tensors, numbers and modules made smaller in place."""
