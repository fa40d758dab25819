"""What files may hold and how one is written: text, typed JSON, archives and pickles that run nothing."""
