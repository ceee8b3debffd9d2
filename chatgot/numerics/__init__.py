"""How do a step's numbers come about, and how are they proven?"""
