"""CLIP: the one door to it, its files, and training small ones."""
