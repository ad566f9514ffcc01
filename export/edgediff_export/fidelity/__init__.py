"""What an export costs: stages and final images against the float model's."""
