"""Images from disk: the reading plan, the WebDataset reader, the Lightning data module."""
