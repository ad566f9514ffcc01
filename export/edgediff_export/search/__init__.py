"""Mixed precision under a budget of image quality and size."""
