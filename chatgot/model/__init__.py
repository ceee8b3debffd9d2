"""What the model computes: shapes and maths."""
