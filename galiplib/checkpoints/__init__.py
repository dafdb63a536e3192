"""Training states and generators on disk: ours and the authors'."""
