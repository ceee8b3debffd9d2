"""What does a file of each kind say, piece by piece?"""
