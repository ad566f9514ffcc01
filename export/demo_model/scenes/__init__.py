"""Scenes drawn by program: sprites of one to four things, surroundings, light, exact captions."""
