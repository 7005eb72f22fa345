"""From files to batches: what the data section asks for, where samples lie, how they are decoded."""
