"""From a recipe to a run: stages, each a command line of its own."""
