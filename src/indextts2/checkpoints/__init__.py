"""Model directories: layout, loading, conversion, download."""
