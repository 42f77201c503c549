"""What long computations share: their start, their interruption, their speed and their arguments."""
