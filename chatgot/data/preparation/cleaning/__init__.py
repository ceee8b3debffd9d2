"""What is mended in a text before it is written, and what of it is there twice?"""
