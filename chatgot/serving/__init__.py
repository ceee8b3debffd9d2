"""How does a model answer the programs and browsers of this machine?"""
