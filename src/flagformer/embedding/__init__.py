"""What turns inputs into vectors."""
