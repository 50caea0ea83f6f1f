"""What a paper adds: one file each."""
