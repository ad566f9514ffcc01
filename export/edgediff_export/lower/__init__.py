"""Graph passes: a float32 graph → the same computation in a form that is fast on a target."""
