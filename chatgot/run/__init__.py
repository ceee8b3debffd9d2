"""What is a run, how does it begin, and how does it go on?"""
