"""What files may hold, and how one is written: typed JSON, plain YAML, archives, pickles that run nothing."""
