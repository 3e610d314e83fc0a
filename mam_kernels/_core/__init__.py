"""What the operations share: checks, dispatch, registration, random bits, loading of the extension."""
