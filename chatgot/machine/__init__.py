"""What does a run compute on, and what was measured there?"""
