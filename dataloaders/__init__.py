"""Data flows one way: dataset file -> transforms -> two-stream loader -> script."""
