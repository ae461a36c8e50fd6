"""What carries out each kind of run."""
