"""The cost of an export in quality: stages and final images against the float model's."""
