"""What a team is worth: translations by every network, thresholds, tables."""
