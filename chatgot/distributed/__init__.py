"""Which processes compute a run together, and how do they agree?"""
