"""What a measurement is made on, and who disturbs it."""
