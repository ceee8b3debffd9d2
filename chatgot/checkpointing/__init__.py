"""How does state reach the disk, and how is it trusted again?"""
