"""One classifier by name, and the team: a delegator and its experts."""
