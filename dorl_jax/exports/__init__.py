"""Vectors and models in the formats of other people's tools."""
