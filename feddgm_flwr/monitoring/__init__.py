"""What a run leaves behind: events, results, pictures. Reads what the strategy says, only."""
