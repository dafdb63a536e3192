"""The sampler panel, in notebooks and as a web page."""
