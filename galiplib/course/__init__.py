"""What the notebooks need and the GAN does not: runner, checkers of exercises, figures."""
