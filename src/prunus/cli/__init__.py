"""The commands, one or two a file; ``main`` lists them. None imports torch at its head."""
