"""Where do tokens come from when the text is larger than the machine?"""
