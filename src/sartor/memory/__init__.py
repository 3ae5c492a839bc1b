"""What a step needs, and how a run is executed: the plan."""
