"""How does a model leave for other programs, and how does one come in from there?"""
