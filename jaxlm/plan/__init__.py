"""What a run will need and cost on hardware that need not be there: `jaxlm plan` and `jaxlm bench`."""
