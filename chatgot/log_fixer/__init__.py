"""How does anyone's broken log become clean text?"""
