"""Tells images that are not of a model's kind from images that are: out-of-distribution detection."""
