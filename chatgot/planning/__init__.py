"""What will a run need: how much memory, how many machines, how long?"""
