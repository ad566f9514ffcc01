"""Torch modules to float32 graphs, one stage at a time, each checked against torch."""
