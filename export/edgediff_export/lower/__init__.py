"""Graph passes for a target: a float32 graph → the same computation in a form fast on it."""
