"""Picture formats, one file each: `is_...` knows its first bytes, `open_...` reads the header and can decode."""
