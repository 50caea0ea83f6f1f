"""Models on disk, without pickle."""
