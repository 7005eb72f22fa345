"""What a run is worth: predictions, tables, pictures, operating points, studies."""
