"""From files to batches: what a recipe's data section asks for, where samples lie, how they are decoded and drawn."""
