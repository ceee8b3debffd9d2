"""What does the model compute: shapes and maths?"""
