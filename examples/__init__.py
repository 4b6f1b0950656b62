"""Short scripts that read like the theory; each makes a figure and returns its numbers."""
