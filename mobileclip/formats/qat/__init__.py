"""Fine-tuning a student under the rounding of its int8 program."""
