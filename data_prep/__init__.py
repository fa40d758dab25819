"""Turns released image data sets and folders of photographs into checked shards that dualscore trains on."""
