"""What people look at: overlays, strips, tables."""
