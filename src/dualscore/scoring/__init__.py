"""Scores images with a trained model: how probable each is, and how well that tells images of other kinds."""
