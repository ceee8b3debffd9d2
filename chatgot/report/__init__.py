"""How does a run become one page?"""
