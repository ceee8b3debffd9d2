"""How does a prompt become text?"""
