"""Classifiers that judge generated scenes. They are trained on composed originals only."""
