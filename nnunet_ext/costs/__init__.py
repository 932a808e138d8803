"""What networks hold and cost, and the score that weighs accuracy against it."""
