"""From a caption to pictures, files of pictures, and back."""
