"""The text-to-image GANs, one a file."""
