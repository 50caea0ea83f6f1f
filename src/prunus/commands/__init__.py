"""The commands, one or two a file; ``prunus.cli`` lists them. None imports torch at its head."""
