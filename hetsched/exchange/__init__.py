"""Programs in the file formats of others."""
