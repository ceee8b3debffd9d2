"""How does a text become ids, and ids become (x, y)?"""
