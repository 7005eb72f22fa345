"""Collaboration of Experts for translation: the place of the fairseq plugin, which is not built yet."""
