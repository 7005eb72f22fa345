"""Routed generation: who translates a sentence, and what that costs."""
