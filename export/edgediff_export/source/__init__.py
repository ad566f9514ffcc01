"""Where a model comes from: a pipeline's components and whatever is merged into them."""
