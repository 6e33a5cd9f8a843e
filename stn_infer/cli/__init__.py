"""One file a command, thin over the API."""
