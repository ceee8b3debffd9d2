"""How does whatever a user has become one text that a model can learn from?"""
