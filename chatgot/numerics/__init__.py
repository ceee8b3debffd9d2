"""How a step's numbers come about, and how they are proven."""
