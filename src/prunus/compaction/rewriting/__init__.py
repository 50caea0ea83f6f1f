"""Graphs that stand in for modules."""
