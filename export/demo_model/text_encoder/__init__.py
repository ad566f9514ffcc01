"""The text encoder, taught on captions of scenes before any image is drawn."""
