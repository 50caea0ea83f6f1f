"""What is to be done, as plain values."""
