"""Control networks at run time, on a bundle of random weights: torch-free."""
