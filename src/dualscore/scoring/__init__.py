"""Scores images with a trained model: how probable each is, among which others, and where it is not."""
