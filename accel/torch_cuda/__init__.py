"""Part of lowbit."""
