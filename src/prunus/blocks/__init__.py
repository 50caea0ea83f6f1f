"""Models pruned one block at a time: what a large one needs."""
