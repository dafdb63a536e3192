"""A training in a folder: what guards it, stops it, records it, launches it."""
