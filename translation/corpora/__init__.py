"""Texts and vocabularies."""
