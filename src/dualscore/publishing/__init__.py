"""A trained model made ready for others: exported, or converted from a released checkpoint."""
