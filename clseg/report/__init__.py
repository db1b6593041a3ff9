"""Pictures of results for the eye."""
