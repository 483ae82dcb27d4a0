"""What became of a run, as one HTML page that needs nothing else."""
