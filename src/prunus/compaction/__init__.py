"""Physically smaller, same function: slice what a cut removed, rewrite, verify.

``cut`` says which indices go, ``rewrite`` makes the smaller graph, ``surgery`` the smaller
module, ``verify`` compares with the masked model, ``routes`` tries one after the other.
"""
