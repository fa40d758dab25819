"""Pictures from anybody's files, and grids of pictures."""
